// Small pictures of the other worlds, as they draw them where chance is taken out of place, size and ground:
// the frames of `data.worlds.videos`, the phantom scans of `data.worlds.scans`, the things of `data.worlds.town`.

import { normals } from "./controls.js";
import { COLOURS, GLYPHS } from "./scene.js";

export const SIDE = 24;
const ACTORS = ["red", "green", "blue", "yellow"];
const GROUND = 0.15;

const clip = (value) => Math.max(0, Math.min(1, value));
const mix = (ink, colour) => colour.map((channel) => GROUND * (1 - ink) + channel * ink);

/** A picture from the colour of each pixel, from 0 to 1. */
function raster(colourAt) {
  const data = new Uint8ClampedArray(4 * SIDE * SIDE);
  for (let at = 0; at < SIDE * SIDE; at++) {
    const colour = colourAt(at % SIDE, Math.floor(at / SIDE));
    data.set([...colour.map((channel) => Math.floor(255 * clip(channel) + 0.5)), 255], 4 * at);
  }
  return { data, width: SIDE, height: SIDE };
}

/** The eight frames of a video: an actor in one of four corners, and a lamp that is lit from a frame on.
 *
 * @param {{place: number[], colour: number[], lamp: number, lights: number}} video - as the world has it
 * @param {number} sigma - of the noise, a standard deviation
 */
export function frames({ place, colour, lamp, lights }, sigma, seed = 0) {
  const normal = normals(seed);
  const clear = (frame) => (x, y) => {
    const corner = 2 * Math.floor(y / 12) + Math.floor(x / 12);
    const [right, down] = [x % 12, y % 12];
    if (corner === lamp && right < 3 && down < 3) return new Array(3).fill(frame >= lights ? 1 : 0.45);
    const ink = corner === place[frame] ? clip(4 - Math.hypot(right - 5.5, down - 5.5)) : 0;
    return mix(ink, COLOURS[ACTORS[colour[frame]]]);
  };
  return place.map((_, frame) => raster((x, y) => clear(frame)(x, y).map((channel) => channel + sigma * normal())));
}

/** How far x, y (from the middle) are inside the outlines of organs. */
const INSIDE = [
  (x, y) => 11 - Math.hypot(x, y), (x, y) => 10 - Math.max(Math.abs(x), Math.abs(y)),
  (x, y) => 13.5 - Math.abs(x) - Math.abs(y), (x, y) => 11.5 - Math.hypot(x, y),
];
/** Light or dark, by row and column: the textures of modalities. */
const TEXTURES = [(across) => across, (_, down) => down, (across, down) => across !== down, () => 0.5];

/** A phantom scan: a texture, an outline, and on each side a finding or none (-1). */
export function scan({ modality, organ, finding, grade }, sigma, seed = 0) {
  const normal = normals(seed);
  return raster((column, row) => {
    const [x, y] = [column - 11.5, row - 11.5];
    const inside = INSIDE[organ](x, y);
    const texture = Number(TEXTURES[modality](row % 4 < 2, column % 4 < 2));
    let grey = inside > 0 ? 0.45 + 0.14 * (texture - 0.5) : 0.1;
    const isSecondRim = organ === 3 && Math.abs(Math.hypot(x, y) - 8.5) < 0.8;
    if (Math.abs(inside) < 1 || isSecondRim) grey = 0.75;
    for (const side of [0, 1]) {
      if (finding[side] < 0) continue;
      const depth = 1.3 + 0.75 * grade[side] - Math.hypot(x - 8 * (side - 0.5), y);
      const ink = clip(depth + 0.5) - (finding[side] >= 2 ? clip(depth - 0.7) : 0); // some are hollow
      grey += (finding[side] % 2 ? -0.4 : 0.4) * ink;
    }
    return new Array(3).fill(grey + sigma * normal());
  });
}

/** A thing of the town: a glyph in a colour. */
export function artefact({ object, colour }, sigma, seed = 0) {
  const normal = normals(seed);
  return raster((column, row) => {
    const ink = clip(0.5 + 6 * GLYPHS[object]((column - 11.5) / 6, (row - 11.5) / 6));
    return mix(ink, COLOURS[colour]).map((channel) => channel + sigma * normal());
  });
}
