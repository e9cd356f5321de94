// The correction of D-LEAF while a caption is written: in chosen layers, heads that look little at the image take
// over the attention row of the head that looks most. Only the newest token's row changes.

import { bars, choice, element, notice, slider } from "../controls.js";
import { edit } from "../hooks.js";
import { caption, describe, draw, editor, loadDigits, said, scene } from "../scene.js";

const DELTA = 0.2; // by how much an entropy must exceed the threshold, as a share of it: the chapter's

const median = (values) => {
  const ordered = [...values].sort((a, b) => a - b);
  const n = ordered.length;
  return (ordered[(n - 1) >> 1] + ordered[n >> 1]) / 2;
};

/** Captions without and with the correction, and the layers' entropies when the first word is written. */
export function compute({ "scenes-vlm": model }, { picture, where, gamma }) {
  const { ids, features, before } = describe(picture.key, model, picture);
  const first = ids.indexOf(model.imageToken);
  const stop = first + model.nPatches;
  const firstWord = []; // [entropy, whether flagged] of each layer
  const correct = () => {
    let lowest = Infinity; // tau
    return edit("pattern", (pattern, { shape: [nHeads, nQueries, nKeys], layer }) => {
      if (layer === 0) lowest = Infinity;
      const rows = Array.from({ length: nHeads }, (_, head) => pattern.subarray(((head + 1) * nQueries - 1) * nKeys, (head + 1) * nQueries * nKeys));
      const focus = rows.map((row) => row.subarray(first, stop).reduce((sum, a) => sum + a, 0)); // IAF
      const look = Array.from({ length: stop - first }, (_, i) => rows.reduce((sum, row) => sum + row[first + i], 0));
      const total = look.reduce((sum, a) => sum + a, 0);
      const entropy = look.reduce((sum, a) => (a > 0 ? sum - (a / total) * Math.log(a / total) : sum), 0); // LIAE
      const flagged = entropy > (1 + DELTA) * lowest;
      lowest = Math.min(lowest, entropy);
      if (nQueries > 1) firstWord.push([entropy, flagged]);
      if (!(where === "flagged" ? flagged : where === "all" || Number(where) === layer)) return;
      const best = rows[focus.indexOf(Math.max(...focus))].slice();
      const middle = median(focus);
      rows.forEach((row, head) => {
        if (focus[head] < middle) for (let key = 0; key < nKeys; key++) row[key] += gamma * (best[key] - row[key]);
      });
    });
  };
  const after = model.tokenizer.decode(model.generate({ ids, features }, 16, [correct()]));
  return { before, after, layers: firstWord };
}

export async function show(stage, ask) {
  const digits = await loadDigits();
  const state = { where: "flagged", gamma: 1, noise: 0.4 };
  const cells = scene("a1 blue star, c2 red disc, d3 green seven, b4 magenta bar");
  const [before, after] = ["p", "p"].map((tag) => element(tag, { class: "live-said" }));
  const [layers, note] = [element("div"), notice()];
  const changed = () => {
    const picture = draw(cells, digits, { cellNoise: state.noise, seed: 5 });
    scenery.show(picture);
    ask({ picture, where: state.where, gamma: state.gamma }, (result) => {
      before.replaceChildren("As it is: ", ...said(result.before, cells));
      after.replaceChildren("Corrected: ", ...said(result.after, cells));
      bars(layers, "Entropy of each layer's look at the image at the first word, in nats; flagged layers in bold",
        result.layers.map(([entropy, flagged], layer) => [`Layer ${layer}`, entropy, flagged && "wrong"]), (x) => x.toFixed(2));
      const [was, is] = [caption(result.before, cells), caption(result.after, cells)];
      note.textContent = `Objects found: ${was.found} before, ${is.found} after, of ${is.there}. Not in the scene: ${was.wrong} before, ${is.wrong} after.`;
    });
  };
  const set = (key) => (value) => { state[key] = value; changed(); };
  const scenery = editor(cells, changed);
  const places = [["flagged", "flagged layers (D-LEAF)"], ["all", "all layers"], ...[0, 1, 2, 3, 4, 5].map((layer) => [String(layer), `layer ${layer}`])];
  stage.append(scenery.element, element("div", {},
    slider("Noise on the objects", { min: 0, max: 1.6, step: 0.1, value: state.noise }, set("noise")),
    slider("γ, how much of the best head's row", { min: 0, max: 1, step: 0.1, value: state.gamma }, set("gamma")),
    choice("Correct in", places, set("where"), state.where), before, after, note), element("div", { class: "live-whole" }, layers));
  changed();
}
