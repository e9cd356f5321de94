// Questions with a popular wrong answer: the model is pushed towards what a careful source would say.

import { bars, choice, element, normals, notice, remember, sample, slider } from "../controls.js";
import { dot, mean, minus, norm, plus, pushed, reader, states, times } from "../steering.js";

const [TAIL, RANK, ROUNDS] = [3, 2, 500]; // tokens of the tail view; directions that are added up
const WAYS = { plain: "no push", pixel: "PIXEL’s direction", shift: "the mean difference", random: "random, pushed as far", prompt: "a careful source in the prompt" };
const SAID = "it is"; // how an answer begins

/** The first right singular vectors of rows, each with the sign of a vector: powers of their covariance. */
function singular(rows, towards) {
  const covariance = Array.from(towards, (_, i) => towards.map((_, j) => rows.reduce((sum, row) => sum + row[i] * row[j], 0)));
  const normal = normals(1);
  let found = Array.from({ length: RANK }, () => towards.map(normal));
  for (let round = 0; round < ROUNDS; round++) {
    found = found.map((v) => Float64Array.from(covariance, (row) => dot(row, v)));
    found.forEach((v, i) => {
      for (const before of found.slice(0, i)) v = minus(v, times(dot(v, before), before));
      found[i] = times(1 / norm(v), v);
    });
  }
  return found.map((v) => times(dot(v, towards) < 0 ? -1 : 1, v));
}

/** Directions behind a block: how a careful source in front changes the ends of questions. */
const directions = remember((model, train, layer) => {
  const views = (text) => {
    const all = states(model, text)[layer];
    return [mean(all.slice(-TAIL)), all.at(-1)];
  };
  const rows = train.flatMap(({ question, careful }) => {
    const plain = views(question);
    return careful.flatMap((source) => views(`${source} ${question}`).map((view, i) => minus(view, plain[i])));
  });
  const shift = mean(rows);
  const centred = rows.map((row) => minus(row, shift));
  const variance = times(1 / (rows.length - 1), centred.map((row) => row.map((x) => x * x)).reduce(plus));
  const scaled = centred.map((row) => row.map((x, i) => x / (Math.sqrt(variance[i]) + 1e-6)));
  return { pixel: singular(scaled, shift).reduce(plus), shift };
});

/** What brings a state to the cosine s with v, at the least length along v. */
export function push(h, v, s) {
  const u = times(1 / norm(v), v);
  const a = dot(u, h);
  const rest = norm(minus(h, times(a, u)));
  return times(Math.max(0, (rest * s) / Math.sqrt(1 - s * s) - a), u);
}

const readers = remember((model, test) => test.map(({ question, careful: [source] }) => [question, `${source} ${question}`].map((text) => reader(model, text))));

/** Of each question and way the probabilities of truth and myth; and how long PIXEL's pushes are beside the states.
 *
 * @param {{train: object[], test: object[], layer: number, s: number, seed: number}} request - the world's
 *   questions, the block that is pushed behind, the target cosine
 */
export function compute({ "myths-lm": model }, { train, test, layer, s, seed }) {
  const { pixel, shift } = directions(layer, model, train, layer);
  const random = shift.map(normals(seed));
  const lengths = [];
  const pushes = {
    pixel: (h) => {
      const added = push(h, pixel, s);
      lengths.push(norm(added) / norm(h));
      return added;
    },
    shift: (h) => push(h, shift, s),
    random: (h) => times(norm(push(h, pixel, s)) / norm(random), random), // as far as PIXEL pushes
  };
  const answers = readers("", model, test).map(([plain, prompt], i) => {
    const ids = test[i].options.map((word) => model.tokenizer.encode(word)[0]);
    const of = (read, ...hooks) => ids.map((id) => read(hooks, SAID)[id]);
    const ways = Object.entries(pushes).map(([way, change]) => [way, of(plain, pushed(layer, change))]);
    return { plain: of(plain), ...Object.fromEntries(ways), prompt: of(prompt) };
  });
  return { answers, length: lengths.reduce((a, b) => a + b, 0) / lengths.length };
}

export async function show(stage, ask) {
  const { facts: { train, test } } = await sample("myths");
  const state = { layer: 2, s: 0.5, seed: 1 };
  let [shown, found] = [0, null];
  const [truth, myth, wins] = ["div", "div", "div"].map((tag) => element(tag));
  const question = element("p", { class: "live-said" });
  const note = notice();
  const draw = () => {
    const { question: asked, options: [right, wrong], rate } = test[shown];
    question.textContent = `“${asked} ${SAID} …” True is ${right}; of 100 casual authors ${Math.round(100 * rate)} say ${wrong}.`;
    if (!found) return;
    const rows = (share) => Object.entries(WAYS).map(([way, words]) => [words, share(way)]);
    const { answers, length } = found;
    bars(truth, `Probability of the truth, ${right}`, rows((way) => answers[shown][way][0]));
    bars(myth, `Probability of the myth, ${wrong}`, rows((way) => answers[shown][way][1]));
    bars(wins, `Share of ${test.length} questions in which the truth beats the myth`, rows((way) => answers.filter((a) => a[way][0] > a[way][1]).length / test.length));
    const left = (way) => Math.round((100 / test.length) * answers.reduce((sum, a) => sum + a[way][0] + a[way][1], 0));
    note.textContent = `PIXEL’s pushes are ${length.toFixed(1)} times as long as the states. Under them truth and myth together keep ${left("pixel")} % `
      + `of the probability, ${left("plain")} % without: the rest goes to other words. Look how both change when s grows.`;
  };
  const changed = () => ask({ train, test, ...state }, (result) => { found = result; draw(); });
  const set = (key) => (value) => { state[key] = Number(value); changed(); };
  stage.append(
    element("div", {},
      choice("Question", test.map(({ question: text }, i) => [i, text.replace(/^q: | a:$/g, "")]), (value) => { shown = Number(value); draw(); }, 0),
      question,
      slider("Target cosine s", { min: 0.1, max: 0.9, step: 0.05, value: state.s, say: (s) => s.toFixed(2) }, set("s")),
      choice("Pushed behind block", Array.from({ length: 6 }, (_, i) => String(i)), set("layer"), state.layer),
      element("button", { type: "button", click: () => set("seed")(state.seed + 1) }, "Another random direction"), note),
    element("div", {}, truth, myth, wins),
  );
  draw();
  changed();
}
