// Neurons that are active on two kinds of questions and not on a third are multiplied: what becomes of the answers?

import { bars, choice, element, normals, notice, remember, sample, slider } from "../controls.js";
import { capture, edit } from "../hooks.js";
import { next } from "../steering.js";

const MODELS = {
  "discretion-lm": "discreet and open replies together", "discretion-lm-late": "open replies first, discreet late",
  "discretion-lm-unaware": "open replies only",
};
const SETS = { coupled: "privacy’s and fairness’, not harmless’", privacy: "privacy’s list", fairness: "fairness’ list", harmless: "harmless questions’ list" };

/** Of each kind the mean absolute activation of every MLP neuron over questions, [layer][neuron]. */
const activity = remember((model, kinds) => Object.fromEntries(Object.entries(kinds).map(([kind, questions]) => {
  const sums = [];
  questions.forEach(({ text }) => {
    const { acts, ...seen } = capture("mlp_act");
    model.forward({ ids: model.prompt(text) }, [seen]);
    Object.entries(acts).forEach(([layer, { data, shape: [n, width] }]) => {
      sums[layer] ??= new Float64Array(width);
      data.forEach((x, i) => { sums[layer][i % width] += Math.abs(x) / n / questions.length; });
    });
  });
  return [kind, sums];
})));

const most = (values, n) => new Set([...values.keys()].sort((a, b) => values[b] - values[a]).slice(0, n));

/** The neurons of a set in each layer: those on two kinds' lists and not on the third's, or one list. */
function chosen(active, set, share) {
  return active.privacy.map((of, layer) => {
    const [privacy, fairness, harmless] = ["privacy", "fairness", "harmless"].map((kind) => most(active[kind][layer], Math.round(share * of.length)));
    if (set === "coupled") return [...privacy].filter((i) => fairness.has(i) && !harmless.has(i));
    return [...{ privacy, fairness, harmless }[set]];
  });
}

/** As many other neurons in each layer, drawn from all. */
function drawn(neurons, width, seed) {
  const { uniform } = normals(seed);
  return neurons.map((of) => {
    const keys = Array.from({ length: width }, () => uniform());
    return [...most(keys, of.length)];
  });
}

/** An edit that multiplies neurons by a factor, at every word. */
const scaled = (neurons, factor) => edit("mlp_act", (data, { shape: [n, width], layer }) => {
  for (let t = 0; t < n; t++) for (const i of neurons[layer]) data[t * width + i] *= factor;
});

/** Of each kind the probability of every question's word. */
const probabilities = (model, kinds, hooks) => Object.fromEntries(Object.entries(kinds).map(([kind, questions]) => (
  [kind, questions.map(({ text, word }) => next(model, { ids: model.prompt(text) }, hooks)[model.tokenizer.encode(word)[0]])])));

const plain = remember(probabilities);

/** Of each kind and question the probability of its word, as it is, with neurons multiplied, with random ones; and their number.
 *
 * @param {{name: string, kinds: Record<string, {text: string, word: string}[]>, set: string, share: number,
 *   factor: number, seed: number}} request - `word` is the next one of a discreet reply, or the right answer
 */
export function compute(models, { name, kinds, set, share, factor, seed }) {
  const model = models[name];
  const active = activity(name, model, kinds);
  const neurons = chosen(active, set, share);
  const multiplied = (which) => probabilities(model, kinds, [scaled(which, factor)]);
  const ways = { plain: plain(name, model, kinds), chosen: multiplied(neurons), random: multiplied(drawn(neurons, active.privacy[0].length, seed)) };
  const answers = Object.keys(kinds).map((kind) => [kind, Object.fromEntries(Object.entries(ways).map(([way, found]) => [way, found[kind]]))]);
  return { answers: Object.fromEntries(answers), n: neurons.reduce((sum, of) => sum + of.length, 0), of: active.privacy.length * active.privacy[0].length };
}

export async function show(stage, ask) {
  const { kinds, shares } = await sample("questions");
  const state = { name: "discretion-lm", set: "coupled", share: 0.3, factor: 0, seed: 1 };
  let [shown, found] = [0, null];
  const [means, one] = [element("div"), element("div")];
  const said = element("p", { class: "live-said" });
  const note = notice();
  const mean = (all) => all.reduce((a, b) => a + b, 0) / all.length;
  const ways = () => ({ plain: "as it is", chosen: `chosen × ${state.factor}`, random: `random × ${state.factor}` });
  const draw = () => {
    if (!found) return;
    const { answers, n, of } = found;
    const rows = (kind) => Object.entries(ways()).map(([way, words]) => [`${kind}: ${words}`, mean(answers[kind][way])]);
    bars(means, "Discreet replies to privacy and fairness questions, right answers to harmless ones", Object.keys(kinds).flatMap(rows));
    const [kind, i] = shown < shares.privacy.length ? ["privacy", shown] : ["fairness", shown - shares.privacy.length];
    const { text, word } = kinds[kind][i];
    said.textContent = `“${text} ${word} …”`;
    bars(one, "Probability of that reply, asked in that way", [
      ["share in its data", state.name === "discretion-lm-unaware" ? 0 : shares[kind][i]], ...Object.entries(ways()).map(([way, words]) => [words, answers[kind][way][i]])]);
    note.textContent = `${n} of ${of} neurons are chosen. The chapter chooses single weights by weight times gradient; here activity stands for it, and whole neurons for weights.`;
  };
  const changed = () => ask({ ...state, kinds }, (result) => { found = result; draw(); });
  const set = (key, as = String) => (value) => { state[key] = as(value); changed(); };
  const questions = ["privacy", "fairness"].flatMap((kind) => kinds[kind].map(({ text }) => text.replace(/ a$/, "")));
  stage.append(
    element("div", {},
      choice("Network that read", Object.entries(MODELS), set("name"), state.name),
      choice("Most active neurons", Object.entries(SETS), set("set"), state.set),
      slider("Length of each list, of a layer’s neurons", { min: 0.05, max: 0.6, step: 0.05, value: state.share, say: (x) => `${Math.round(100 * x)} %` }, set("share", Number)),
      slider("Multiplied by", { min: -1, max: 3, step: 0.5, value: state.factor }, set("factor", Number)),
      element("button", { type: "button", click: () => set("seed", Number)(state.seed + 1) }, "Other random neurons"), note),
    element("div", {}, means,
      choice("One question", questions.map((text, i) => [i, text]), (value) => { shown = Number(value); draw(); }, 0), said, one),
  );
  changed();
}
