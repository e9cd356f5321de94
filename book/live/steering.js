// Directions in the residual stream, and what a model says that is pushed along them.

import { capture, edit } from "./hooks.js";
import { softmax } from "./model.js";
import { Cache } from "./transformer.js";

export const dot = (a, b) => a.reduce((sum, x, i) => sum + x * b[i], 0);
export const norm = (a) => Math.sqrt(dot(a, a));
export const times = (k, a) => a.map((x) => k * x);
export const plus = (a, b) => a.map((x, i) => x + b[i]);
export const minus = (a, b) => a.map((x, i) => x - b[i]);
export const mean = (vectors) => times(1 / vectors.length, vectors.reduce(plus));

/** Probabilities of the word behind the inputs of a pass. */
export const next = (model, inputs, hooks) => softmax(model.forward(inputs, hooks).logits.subarray(-model.text.head.outputs));

/** The residual stream behind each block, [layer][token], of a text. */
export function states(model, text) {
  const { acts, ...seen } = capture("resid_post");
  model.forward({ ids: model.prompt(text) }, [seen]);
  return Object.values(acts).map(({ data, shape: [n, width] }) => (
    Array.from({ length: n }, (_, t) => Float64Array.from(data.subarray(t * width, (t + 1) * width)))));
}

/** An edit of the tokens' states behind a block: `push` gives what is added to each. */
export const pushed = (layer, push) => edit("resid_post", (data, { shape: [n, width] }) => {
  for (let t = 0; t < n; t++) {
    const state = Float64Array.from(data.subarray(t * width, (t + 1) * width));
    data.set(plus(state, push(state)), t * width);
  }
}, { layers: [layer] });

/** Reads a text but for its last word; gives the probabilities of the next word behind it and some more words, with hooks from there on. */
export function reader(model, text) {
  const ids = model.prompt(text);
  const { cache } = model.forward({ ids: ids.slice(0, -1) });
  return (hooks, more = "") => {
    const inputs = {
      ids: [ids.at(-1), ...model.tokenizer.encode(more)],
      cache: Object.assign(new Cache(model.text.tower.nLayers), cache, { keys: [...cache.keys], values: [...cache.values] }),
    };
    return next(model, inputs, hooks);
  };
}
