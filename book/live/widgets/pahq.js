// Heads of the small GPT-2s, knocked out as the chapter cuts edges: a head that is out says what it says on the
// corrupted prompt, so that only what the two prompts do not share is lost.

import { bars, choice, element, group, line, notice, toggle, top } from "../controls.js";
import { capture, edit } from "../hooks.js";
import { next } from "../steering.js";

const TASKS = { // of each its organism, a prompt, and a twin of the same length that lacks what the answer needs
  ioi: ["ioi-gpt", "now now well Dan and Sam walked , now Dan sent to", "now now well Tess and Amos walked , now Flo sent to"],
  induction: ["induction-gpt", "z y d k p u t s n y d k p u t s n y d k", "z s c q a u y k w p g e l d o r j h f x"],
  greater: ["greater-gpt", "today later later the trial lasted from 15th 17 to 15th", "today later later the trial lasted from 15th 01 to 15th"],
  docstring: [
    "docstring-gpt", "def port self load stop key path depth : param load param stop piece unit param key crime old param",
    "def port self depth name size count path : param depth param size piece unit param start crime old param",
  ],
};

/** With some heads out, and with each head out alone: probabilities of the next word.
 *
 * @param {{name: string, prompt: string, other: string, out: string[]}} request - `out` has heads as "layer.head"
 */
export function compute(models, { name, prompt, other, out }) {
  const model = models[name];
  const [{ nLayers, nHeads, dHead }] = model.towers;
  const [ids, corrupted] = [prompt, other].map((text) => model.prompt(text));
  if (ids.length < 2) throw new Error("type at least one word");
  if (ids.length !== corrupted.length) {
    throw new Error(`the prompts have ${ids.length - 1} and ${corrupted.length - 1} words; give both as many`);
  }
  const spoken = capture("z");
  model.forward({ ids: corrupted }, [spoken]);
  const without = (heads) => edit("z", (z, { shape: [length], layer }) => {
    for (let head = 0; head < nHeads; head++) {
      if (!heads.includes(`${layer}.${head}`)) continue;
      for (let position = 0; position < length; position++) {
        const at = (position * nHeads + head) * dHead;
        z.set(spoken.acts[layer].data.subarray(at, at + dHead), at);
      }
    }
  });
  const after = (hooks) => next(model, { ids }, hooks);
  const whole = after([]);
  const answer = whole.indexOf(Math.max(...whole));
  const effects = Array.from({ length: nLayers }, (_, layer) => Array.from({ length: nHeads }, (_, head) =>
    Math.log(whole[answer]) - Math.log(after([without([`${layer}.${head}`])])[answer])));
  const words = model.tokenizer.words;
  const strange = [...new Set([prompt, other].flatMap((text) => model.tokenizer.strange(text)))];
  const left = after([without(out)]);
  return { answer: words[answer], before: top(whole, words, 5), after: top(left, words, 5), left: left[answer], effects, strange };
}

export function show(stage, ask) {
  const state = { task: "ioi", out: new Set() };
  const [heads, before, after] = ["div", "div", "div"].map((tag) => element(tag));
  const note = notice();
  let shown = "";

  const changed = () => {
    const request = { name: TASKS[state.task][0], prompt: prompt.input.value, other: other.input.value, out: [...state.out] };
    ask(request, draw);
  };
  const draw = (result) => {
    const { answer, effects } = result;
    if (shown !== state.task) { // the heads of another model
      shown = state.task;
      heads.replaceChildren(...effects.map((row, layer) => group(`Layer ${layer}`, ...row.map((_, head) => {
        const key = `${layer}.${head}`;
        return toggle("", state.out.has(key), (out) => { state.out[out ? "add" : "delete"](key); changed(); });
      }))));
    }
    const largest = Math.max(0.3, ...effects.flat());
    [...heads.querySelectorAll("button")].forEach((button, i) => {
      const [layer, head] = [Math.floor(i / effects[0].length), i % effects[0].length];
      const effect = effects[layer][head];
      button.textContent = `${head}: ${effect < 0 ? "+" : "−"}${Math.abs(effect).toFixed(1)}`;
      button.setAttribute("aria-label", `${button.textContent} nats, if head ${head} of layer ${layer} alone is out`);
      button.style.setProperty("--effect", Math.max(0, effect) / largest);
    });
    const mark = ([word, p]) => [word, p, word === answer && "right"];
    bars(before, "Whole model: next word", result.before.map(mark));
    bars(after, state.out.size ? `Without ${state.out.size} head${state.out.size > 1 ? "s" : ""}: next word` : "Nothing is out: next word", result.after.map(mark));
    note.textContent = result.strange.length
      ? `Not among the model's words: ${result.strange.join(", ")}.`
      : `“${answer}” has ${(100 * result.left).toFixed(1)} % left. On each head: what the answer's log-probability loses, in nats, if that head alone is out.`;
  };
  const setTask = (task) => {
    Object.assign(state, { task, out: new Set() });
    [, prompt.input.value, other.input.value] = TASKS[task];
    changed();
  };
  const again = () => { // the same heads, none out
    state.out.clear();
    for (const button of heads.querySelectorAll("button")) button.setAttribute("aria-pressed", "false");
    changed();
  };
  const prompt = line("Prompt", "", changed);
  const other = line("What a head says that is out: on this prompt", "", changed);
  stage.append(
    element("div", { class: "live-whole" },
      element("div", { class: "live-row" },
        choice("Task", Object.keys(TASKS), setTask, "ioi"), element("button", { type: "button", click: again }, "All heads back")),
      prompt, other),
    element("div", { class: "live-whole live-heads" }, heads, note),
    before, after,
  );
  setTask("ioi");
}
