// Scenes of `data.worlds.scenes`: a 4 x 4 grid of coloured glyphs and handwritten digits, drawn and edited.

import { choice, element, normals, remember, sample } from "./controls.js";

export const SIDE = 64;
export const COLOURS = {
  red: [0.9, 0.15, 0.15], green: [0.15, 0.75, 0.2], blue: [0.2, 0.3, 1], yellow: [0.95, 0.85, 0.1],
  magenta: [0.9, 0.2, 0.9], cyan: [0.1, 0.85, 0.9],
};
/** Neighbours are partners: disc and cross, ..., four and eight. */
export const OBJECTS = [
  "disc", "cross", "hourglass", "moon", "square", "star", "triangle", "bar",
  "zero", "nine", "one", "five", "two", "six", "three", "seven", "four", "eight",
];
const DIGITS = { zero: 0, one: 1, two: 2, three: 3, four: 4, five: 5, six: 6, seven: 7, eight: 8, nine: 9 };
export const CELLS = [1, 2, 3, 4].flatMap((row) => [..."abcd"].map((column) => column + row)); // reading order
const BACKGROUND = 0.15;

/** How far x, y (right, down, -1 to 1) are inside a glyph; negative outside. */
export const GLYPHS = {
  disc: (x, y) => 0.95 - Math.hypot(x, y),
  cross: (x, y) => Math.min(0.3 - Math.min(Math.abs(x), Math.abs(y)), 0.95 - Math.max(Math.abs(x), Math.abs(y))),
  hourglass: (x, y) => Math.min(0.85 - Math.abs(y), (0.95 * Math.abs(y) + 0.12 - Math.abs(x)) / 1.4),
  moon: (x, y) => Math.min(0.95 - Math.hypot(x, y), Math.hypot(x - 0.55, y) - 0.7),
  square: (x, y) => 0.82 - Math.max(Math.abs(x), Math.abs(y)),
  star: (x, y) => 0.62 + 0.36 * Math.cos(5 * Math.atan2(x, -y)) - Math.hypot(x, y),
  triangle: (x, y) => Math.min(0.75 - y, (y + 0.95 - 1.8 * Math.abs(x)) / 2.06),
  bar: (x, y) => Math.min(0.32 - Math.abs(y), 0.98 - Math.abs(x)),
};

/** The handwritten digits that the site has: of each class a few 8 x 8 images, ink from 0 to 255. */
export const loadDigits = () => sample("digits");

function bilinear(image, x, y) {
  const place = (v) => Math.max(0, Math.min(8.999, 4 * (v + 1) + 0.5)); // in the image with a margin of one
  const ink = (row, column) => (row >= 1 && row <= 8 && column >= 1 && column <= 8 ? image[8 * (row - 1) + column - 1] / 255 : 0);
  const [left, upper] = [Math.floor(place(x)), Math.floor(place(y))];
  const [dx, dy] = [place(x) - left, place(y) - upper];
  const row = (r) => ink(r, left) * (1 - dx) + ink(r, left + 1) * dx;
  return row(upper) * (1 - dy) + row(upper + 1) * dy;
}

/** A scene as RGBA pixels of 64 x 64: its objects upright, in the middle of their cells, of middling size.
 *
 * @param {({object: string, colour: string} | null)[]} cells - in reading order
 * @param {number[][][]} digits - what `loadDigits` gives
 * @param {{noise?: number, cellNoise?: number, seed?: number}} doses - standard deviations, as in
 *   `data.worlds.scenes.draw`: on all pixels, and on those of cells that hold something
 * @returns {{data: Uint8ClampedArray, width: number, height: number, key: string}} the key is the picture's own
 */
export function draw(cells, digits, { noise = 0, cellNoise = 0, seed = 0 } = {}) {
  const data = new Uint8ClampedArray(4 * SIDE * SIDE);
  const normal = normals(seed);
  for (let at = 0; at < SIDE * SIDE; at++) {
    const [row, column] = [Math.floor(at / SIDE), at % SIDE];
    const cell = cells[4 * Math.floor(row / 16) + Math.floor(column / 16)];
    let ink = 0;
    if (cell) {
      const half = cell.object in DIGITS ? 7.625 : 6;
      const [x, y] = [((column % 16) - 7.5) / half, ((row % 16) - 7.5) / half];
      if (cell.object in DIGITS) ink = bilinear(digits[DIGITS[cell.object]][0], x, y);
      else ink = Math.max(0, Math.min(1, 0.5 + half * GLYPHS[cell.object](x, y)));
    }
    const sigma = Math.hypot(noise, cell ? cellNoise : 0);
    for (let channel = 0; channel < 3; channel++) {
      const colour = cell ? COLOURS[cell.colour][channel] : 0;
      const value = BACKGROUND * (1 - ink) + ink * colour + sigma * normal();
      data[4 * at + channel] = Math.max(0, Math.min(255, Math.floor(255 * value + 0.5)));
    }
    data[4 * at + 3] = 255;
  }
  return { data, width: SIDE, height: SIDE, key: JSON.stringify([cells, noise, cellNoise, seed]) };
}

/** A scene that the reader makes: choose an object and a colour, then a cell.
 *
 * @param {object[]} cells - the scene at first; changed in place
 * @param {(cells: object[]) => void} changed - called with every new scene
 * @param {{press?: (number: number) => boolean}} [options] - `press` may take a click on a cell for itself
 * @returns {{element: HTMLElement, show: (picture: object, covered?: Set<number>) => void}} `show` paints a
 *   picture, and hatches some of its 64 patches
 */
export function editor(cells, changed, { press } = {}) {
  let [object, colour] = ["star", "red"];
  const canvas = element("canvas", { width: SIDE, height: SIDE, "aria-hidden": "true" });
  const cover = element("canvas", { width: 8 * SIDE, height: 8 * SIDE, "aria-hidden": "true" });
  const words = (cell) => (cell ? `${cell.colour} ${cell.object}` : "empty");
  const buttons = CELLS.map((name, number) => element("button", {
    type: "button", title: name, "aria-label": `${name}: ${words(cells[number])}`,
    click: () => {
      if (press?.(number)) return;
      const same = cells[number]?.object === object && cells[number]?.colour === colour;
      cells[number] = same ? null : { object, colour };
      buttons[number].setAttribute("aria-label", `${name}: ${words(cells[number])}`);
      changed(cells);
    },
  }));
  const show = ({ data }, covered = new Set()) => {
    canvas.getContext("2d").putImageData(new ImageData(data, SIDE, SIDE), 0, 0);
    const context = cover.getContext("2d");
    context.clearRect(0, 0, cover.width, cover.height);
    Object.assign(context, { fillStyle: "rgb(235 232 225 / 88%)", strokeStyle: "#8a857a", lineWidth: 2 });
    for (const patch of covered) {
      const [x, y] = [64 * (patch % 8), 64 * Math.floor(patch / 8)];
      context.fillRect(x, y, 64, 64);
      context.beginPath();
      context.moveTo(x, y + 64);
      context.lineTo(x + 64, y);
      context.stroke();
    }
  };
  const box = element(
    "div", { class: "live-scene" },
    element("div", { class: "live-row" },
      choice("Object", OBJECTS, (value) => { object = value; }, object),
      choice("Colour", Object.keys(COLOURS), (value) => { colour = value; }, colour)),
    element("div", { class: "live-grid", role: "group", "aria-label": "The scene, cell by cell: press one to fill or empty it" }, canvas, cover, ...buttons),
  );
  return { element: box, show };
}

/** A scene from words: `scene("b2 red star, c3 blue four")`. */
export function scene(text) {
  const cells = new Array(16).fill(null);
  for (const part of text.split(", ")) {
    const [cell, colour, object] = part.split(" ");
    cells[CELLS.indexOf(cell)] = { object, colour };
  }
  return cells;
}

/** What is asked for a picture's caption, its image tokens, and the caption as the model writes it. */
export const describe = remember((model, picture) => {
  const ids = model.prompt("describe the picture", 1);
  const features = model.features(model.picture(picture));
  return { ids, features, before: model.tokenizer.decode(model.generate({ ids, features }, 16)) };
});

/** How a caption fits a scene: objects that it finds, of those there, and mentions of objects that are not there. */
export function caption(text, cells) {
  const mentions = text.split(" ").filter((word) => OBJECTS.includes(word));
  const there = new Set(cells.filter(Boolean).map(({ object }) => object));
  const wrong = mentions.filter((word) => !there.has(word)).length;
  return { found: new Set(mentions.filter((word) => there.has(word))).size, there: there.size, wrong };
}

/** A caption's words, objects that are not in the scene marked. */
export function said(text, cells) {
  const there = cells.filter(Boolean).map(({ object }) => object);
  return text.split(" ").flatMap((word) => {
    const wrong = OBJECTS.includes(word) && !there.includes(word);
    return [wrong ? element("strong", { class: "wrong", title: "not in the scene" }, word) : word, " "];
  });
}
