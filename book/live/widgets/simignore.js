// Image tokens that no query may look at, by how like the words of the options they are.

import { bars, choice, element, normals, notice, remember, slider } from "../controls.js";
import { edit } from "../hooks.js";
import { softmax } from "../model.js";
import { CELLS, COLOURS, OBJECTS, draw, editor, loadDigits, scene } from "../scene.js";

const QUESTIONS = {
  "what colour is the X": Object.keys(COLOURS),
  "is there a X": ["yes", "no"],
  "where is the X": CELLS,
};
const ORDERS = { least: "least similar first", most: "most similar first", random: "at random" };

const dot = (a, b) => a.reduce((sum, x, i) => sum + x * b[i], 0);

/** Image tokens in the order in which they are ignored: the walk of the chapter, backwards for "least".
 *
 * A token's place in the walk is that of its best pair: largest cosine with any of the options' words.
 */
function ordered(features, words, order) {
  const n = features.length;
  const chance = normals(3);
  const score = order === "random" ? features.map(() => chance.uniform()) : features.map((token) =>
    Math.max(...words.map((word) => dot(token, word) / Math.sqrt(dot(token, token) * dot(word, word)))));
  const ranked = Array.from({ length: n }, (_, i) => i).sort((a, b) => score[b] - score[a]);
  return order === "least" ? ranked.reverse() : ranked;
}

const featuresOf = remember((model, picture) => model.features(model.picture(picture)));
const wholeAnswer = remember((next) => next([]));

/** Probabilities of the options with all image tokens and without those that are ignored. */
export function compute({ "scenes-vlm": model }, { picture, question, options, hidden, order }) {
  const { table, tower: { dModel } } = model.text;
  const features = featuresOf(picture.key, model, picture);
  const rows = (data, places) => places.map((i) => data.subarray(i * dModel, (i + 1) * dModel));
  const ids = options.map((word) => model.tokenizer.encode(word)[0]);
  const ignored = ordered(rows(features, [...Array(model.nPatches).keys()]), rows(table.data, ids), order).slice(0, hidden);
  const prompt = model.prompt(question, 1);
  const first = prompt.indexOf(model.imageToken);
  const hide = edit("scores", (scores, { shape: [, , nKeys] }) => { // in every layer and head, for every query
    for (let row = 0; row < scores.length; row += nKeys) for (const token of ignored) scores[row + first + token] = -Infinity;
  });
  const next = (hooks) => {
    const { logits } = model.forward({ ids: prompt, features }, hooks);
    return softmax(ids.map((id) => logits.at(id - model.text.head.outputs))); // among the options
  };
  return { ignored, whole: wholeAnswer(picture.key && picture.key + question, next), left: next([hide]) };
}

export async function show(stage, ask) {
  const digits = await loadDigits();
  const state = { kind: Object.keys(QUESTIONS)[0], object: "star", hidden: 13, order: "least" };
  const cells = scene("b2 red star, c2 blue four, a4 yellow moon, d1 green seven");
  const [result, note] = [element("div"), notice()];
  const changed = () => {
    const [picture, options] = [draw(cells, digits), QUESTIONS[state.kind]];
    const truth = cells.findIndex((cell) => cell?.object === state.object);
    const right = { "what colour is the X": cells[truth]?.colour, "is there a X": truth < 0 ? "no" : "yes", "where is the X": CELLS[truth] }[state.kind];
    const request = { picture, question: state.kind.replace("X", state.object), options, hidden: state.hidden, order: state.order };
    ask(request, ({ ignored, whole, left }) => {
      scenery.show(picture, new Set(ignored));
      const best = [...options.keys()].sort((a, b) => left[b] - left[a]).slice(0, 6);
      bars(result, `Of the options, with ${64 - state.hidden} of 64 image tokens`, best.map((i) => [options[i], left[i], options[i] === right ? "right" : ""]));
      const said = (p) => options[p.indexOf(Math.max(...p))];
      note.textContent = `With all tokens it says “${said(whole)}” (${(100 * Math.max(...whole)).toFixed(0)} %). ${right ? `True is “${right}”.` : `There is no ${state.object}.`}`;
    });
  };
  const set = (key) => (value) => { state[key] = value; changed(); };
  const scenery = editor(cells, changed);
  stage.append(scenery.element, element("div", {},
    element("div", { class: "live-row" },
      choice("Question", Object.keys(QUESTIONS), set("kind"), state.kind), choice("X", OBJECTS, set("object"), state.object)),
    slider("Image tokens hidden", { min: 0, max: 64, value: state.hidden, say: (n) => `${n} of 64` }, set("hidden")),
    choice("Which", Object.entries(ORDERS), set("order"), state.order), result, note));
  changed();
}
