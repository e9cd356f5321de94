// A ViT on canvases of four digits, without the attention of some layers: their branch adds nothing.

import { bars, choice, element, group, normals, notice, paint, toggle } from "../controls.js";
import { edit } from "../hooks.js";
import { softmax } from "../model.js";
import { loadDigits } from "../scene.js";

const CELLS = ["Top left (the marker)", "Top right", "Bottom left", "Bottom right"];
const CANVASES = 60;

/** Four 8 x 8 images side by side: the ink of 16 x 16 pixels. */
const together = (images) => Array.from({ length: 256 }, (_, at) => {
  const [row, column] = [at >> 4, at & 15];
  return images[2 * (row >> 3) + (column >> 3)][8 * (row & 7) + (column & 7)];
});

/** The same as a canvas has it, the four numbers of a pixel alike. */
const canvas = (images) => ({ data: together(images).flatMap((ink) => [ink, ink, ink, ink]), width: 16, height: 16 });

/** The cell that a marker points to. */
const pointed = (marker) => 1 + (marker % 3);

let drawn; // canvases on which the share of right answers is counted, drawn once
function draw(digits) {
  if (drawn) return drawn;
  const { uniform } = normals(1);
  drawn = Array.from({ length: CANVASES }, () => {
    const classes = CELLS.map(() => Math.floor(10 * uniform()));
    const images = classes.map((digit) => digits[digit][Math.floor(digits[digit].length * uniform())]);
    return { picture: canvas(images), label: classes[pointed(classes[0])] };
  });
  return drawn;
}

/** Probabilities of the ten digits for one canvas, and right answers on many, without the attention of `off`. */
export async function compute({ "canvas-vit": model }, { chosen, off, digits }) {
  const hooks = off.length ? [edit("attn_out", (z) => z.fill(0), { layers: off })] : [];
  const answer = (picture) => model.forward({ image: model.picture(picture) }, hooks).logits;
  const logits = answer(canvas(chosen.map((digit, cell) => digits[digit][cell])));
  const right = draw(digits).filter(({ picture, label }) => {
    const said = answer(picture);
    return said.indexOf(Math.max(...said)) === label;
  });
  return { probabilities: softmax(logits), right: right.length, of: CANVASES };
}

export async function show(stage, ask) {
  const digits = await loadDigits();
  const [chosen, off] = [[4, 7, 2, 9], new Set()];
  const picture = element("canvas", { class: "live-canvas", role: "img" });
  const [result, note] = [element("div"), notice()];
  const changed = () => {
    paint(picture, together(chosen.map((digit, cell) => digits[digit][cell])), 16);
    picture.setAttribute("aria-label", `A canvas with the digits ${chosen.join(", ")}`);
    ask({ chosen, off: [...off], digits }, ({ probabilities, right, of }) => {
      const label = chosen[pointed(chosen[0])];
      const cell = CELLS[pointed(chosen[0])].toLowerCase();
      bars(result, `${chosen[0]} modulo 3 is ${chosen[0] % 3}: the answer is the digit ${cell}, ${label}`,
        [...probabilities].map((p, digit) => [String(digit), p, digit === label && "right"]));
      note.textContent = `${off.size ? `Without attention in ${off.size} layer${off.size > 1 ? "s" : ""}` : "With all attention"} the network is right on ${right} of ${of} random canvases.`;
    });
  };
  const selects = CELLS.map((name, cell) => choice(name, [...digits.keys()].map(String), (value) => { chosen[cell] = Number(value); changed(); }, String(chosen[cell])));
  const layers = Array.from({ length: 6 }, (_, layer) => toggle(`${layer}`, false, (isOff) => { off[isOff ? "add" : "delete"](layer); changed(); }, `Attention of layer ${layer} off`));
  stage.append(
    element("div", {}, picture, element("div", { class: "live-row" }, ...selects)),
    element("div", {}, group("Attention off in layer", ...layers), note, result),
  );
  changed();
}
