// Cells of a scene hidden one by one: what an answer rests on.

import { bars, choice, element, notice, remember, toggle } from "../controls.js";
import { softmax } from "../model.js";
import { CELLS, COLOURS, OBJECTS, draw, editor, loadDigits, scene } from "../scene.js";

/** Logits of the options on the whole scene, and without each of its cells. */
const answerOn = remember((logits, whole, each) => ({ all: logits(whole), without: each.map(logits) }));

/** The answer with all cells, without those that are hidden, and the lead that each cell alone is worth.
 *
 * The lead is that of the answer over the second best option, in logits, as the chapter's occlusion has it.
 *
 * @param {{whole: object, part: object, each: object[], question: string, options: string[]}} request - pictures
 */
export function compute({ "scenes-vlm": model }, { whole, part, each, question, options }) {
  const ids = options.map((word) => model.tokenizer.encode(word)[0]);
  const prompt = model.prompt(question, 1);
  const logits = (picture) => {
    const last = model.forward({ ids: prompt, image: model.picture(picture) }).logits.subarray(-model.text.head.outputs);
    return ids.map((id) => last[id]);
  };
  const { all, without } = answerOn(whole.key && whole.key + question, logits, whole, each);
  const left = logits(part);
  const [answer, foil] = [...ids.keys()].sort((a, b) => all[b] - all[a]);
  const lead = (values) => values[answer] - values[foil];
  return {
    answer: options[answer], foil: options[foil], lead: [all, left].map(lead), p: [all, left].map((values) => softmax(values)),
    lost: without.map((values) => lead(all) - lead(values)),
  };
}

export async function show(stage, ask) {
  const digits = await loadDigits();
  const state = { object: "star", hides: false };
  const cells = scene("b2 red star, c3 blue cross, d1 green moon, a4 yellow five");
  const hidden = new Set();
  const [answers, worth, note] = [element("div"), element("div"), notice()];
  const options = Object.keys(COLOURS);
  const changed = () => {
    const filled = [...cells.keys()].filter((cell) => cells[cell]);
    const without = (gone) => draw(cells.map((cell, i) => (gone.has(i) ? null : cell)), digits);
    const request = {
      whole: draw(cells, digits), part: without(hidden), each: filled.map((cell) => without(new Set([cell]))),
      question: `what colour is the ${state.object}`, options,
    };
    const patches = (cell) => [0, 1, 8, 9].map((step) => 16 * Math.floor(cell / 4) + 2 * (cell % 4) + step);
    scenery.show(request.whole, new Set([...hidden].flatMap(patches)));
    ask(request, ({ answer, foil, lead, p, lost }) => {
      const seen = cells.find((cell) => cell?.object === state.object)?.colour;
      const order = [...options.keys()].sort((a, b) => p[1][b] - p[1][a]);
      bars(answers, hidden.size ? `Without ${[...hidden].map((cell) => CELLS[cell]).join(", ")}` : "Nothing is hidden",
        order.map((i) => [options[i], p[1][i], options[i] === seen ? "right" : ""]));
      bars(worth, `What each cell alone is worth to “${answer}” over “${foil}”, in logits`,
        filled.map((cell, i) => [`${CELLS[cell]}: ${cells[cell].colour} ${cells[cell].object}`, lost[i]]), (x) => x.toFixed(1));
      note.textContent = `The lead of “${answer}” over “${foil}” is ${lead[1].toFixed(1)}${hidden.size ? `; it was ${lead[0].toFixed(1)}` : ""}.`;
    });
  };
  const press = (cell) => {
    if (!state.hides) return false;
    hidden[hidden.has(cell) ? "delete" : "add"](cell);
    changed();
    return true;
  };
  const scenery = editor(cells, changed, { press });
  stage.append(
    element("div", {}, scenery.element, toggle("Pressing a cell hides it", false, (on) => { state.hides = on; })),
    element("div", {},
      element("div", { class: "live-row" },
        choice("What colour is the …", OBJECTS, (value) => { state.object = value; changed(); }, state.object),
        element("button", { type: "button", click: () => { hidden.clear(); changed(); } }, "Show all")),
      answers, note, worth),
  );
  changed();
}
