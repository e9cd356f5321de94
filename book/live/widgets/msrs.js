// Two attributes, a direction for each: what does the push for one do to the other?

import { bars, element, notice, remember, sample, slider, toggle } from "../controls.js";
import { dot, mean, minus, norm, plus, pushed, reader, states, times } from "../steering.js";

const LAYER = 2; // the middle, as in the chapter
const SAID = "it is"; // how an answer begins

const setsOf = (facts, choices) => ({
  contested: facts.test, uncontested: facts.uncontested, blind: choices.test, evident: choices.evident,
});

/** How a careful source in front of questions changes the state at their end, on average. */
const shift = (model, train) => mean(train.flatMap(({ question, careful }) => {
  const plain = states(model, question)[LAYER].at(-1);
  return careful.map((source) => minus(states(model, `${source} ${question}`)[LAYER].at(-1), plain));
}));

const directions = remember((model, facts, choices) => [facts, choices].map(({ train }) => shift(model, train)));

/** What is left of v without its part along u. */
const without = (v, u) => minus(v, times(dot(v, u) / dot(u, u), u));

const readers = remember((model, sets) => sets.map((items) => items.map(({ question }) => reader(model, question))));

/** The cosine of the directions, how much of each is added, and, for each set of questions, the probabilities of the options.
 *
 * @param {{facts: object, choices: object, strengths: number[], apart: boolean}} request - strengths of truth and
 *   fairness, in units of the directions; `apart`: each without what it shares with the other
 */
export function compute({ "myths-lm": model }, { facts, choices, strengths, apart }) {
  const found = directions("", model, facts, choices);
  const [truth, fairness] = found;
  const used = apart ? [without(truth, fairness), without(fairness, truth)] : found;
  const added = strengths.map((k, i) => times(k, used[i])).reduce(plus);
  const sets = setsOf(facts, choices);
  const read = readers("", model, Object.values(sets));
  const answers = Object.entries(sets).map(([name, items], set) => [name, items.map(({ options }, i) => {
    const p = read[set][i]([pushed(LAYER, () => added)], SAID);
    return options.map((word) => p[model.tokenizer.encode(word)[0]]);
  })]);
  return { cosine: dot(truth, fairness) / (norm(truth) * norm(fairness)), left: norm(used[0]) / norm(truth), answers: Object.fromEntries(answers) };
}

/** Of each set a title, and its rows: words and an option, what is right first. */
const TOLD = {
  contested: ["Facts with a myth", { "the truth": 0, "the myth": 1 }],
  uncontested: ["Facts without a myth", { "the truth": 0 }],
  blind: ["Who is it? Nothing tells", { "“unknown”": 2, "the group that prejudice names": 0, "the other group": 1 }],
  evident: ["Who is it? A sentence tells", { "who the sentence says": "right", "the other person": "wrong", "“unknown”": 2 }],
};

export async function show(stage, ask) {
  const { facts, choices } = await sample("myths");
  const state = { strengths: [1, 0], apart: false };
  const sets = setsOf(facts, choices);
  const boxes = Object.keys(TOLD).map(() => element("div"));
  const note = notice();
  let plain = null; // what is said without a push
  const changed = () => ask({ facts, choices, ...state }, ({ cosine, left, answers }) => {
    const share = (of, name, option) => {
      const at = (i) => ({ right: sets[name][i].right, wrong: 1 - sets[name][i].right }[option] ?? option);
      return of[name].reduce((sum, p, i) => sum + p[at(i)], 0) / of[name].length;
    };
    Object.entries(TOLD).forEach(([name, [title, rows]], i) => {
      const [{ question }] = sets[name];
      const caption = `${title}: “${question.replace(/^q: | a:$/g, "")}” and ${sets[name].length - 1} more`;
      bars(boxes[i], caption, Object.entries(rows).map(([words, option], at) => [words, share(answers, name, option), at === 0 && "right"]));
    });
    const change = (name, option) => `from ${Math.round(100 * share(plain, name, option))} to ${Math.round(100 * share(answers, name, option))} %`;
    note.textContent = `The push takes the truth ${change("contested", 0)}, “unknown” where nothing tells ${change("blind", 2)}, and facts without a myth ${change("uncontested", 0)}. `
      + `The cosine of the two directions is ${cosine.toFixed(2)}${state.apart ? `; without what they share, ${Math.round(100 * left)} % of their lengths are left` : ""}.`;
  });
  const push = (i, label) => slider(label, { min: 0, max: 2, step: 0.25, value: state.strengths[i], say: (k) => `× ${k}` },
    (k) => { state.strengths = state.strengths.map((was, at) => (at === i ? k : was)); changed(); });
  stage.append(
    element("div", { class: "live-whole" },
      push(0, "Push for truth"), push(1, "Push for fairness: say “unknown” where nothing tells"),
      element("p", { class: "live-label" }, `A push is added behind block ${LAYER}, from “a:” on. × 1 is what a careful source in front of such questions changes there, on average. Bars are mean probabilities.`),
      toggle("Take from each direction what it shares with the other", false, (apart) => { state.apart = apart; changed(); }), note),
    element("div", {}, boxes[0], boxes[1]),
    element("div", {}, boxes[2], boxes[3]),
  );
  ask({ facts, choices, ...state, strengths: [0, 0] }, ({ answers }) => { plain = answers; changed(); });
}
