// Fingerprints of small Llamas: how alike two models represent the same sentences, as one of them is pruned.

import { bars, choice, element, normals, notice, slider } from "../controls.js";
import { capture } from "../hooks.js";
import { softmax } from "../model.js";

const [VICTIM, ...STRANGERS] = ["tree-a", "tree-a-seed1", "tree-b", "tree-wide"];
const [SENTENCES, SHORTEST, LONGEST] = [48, 8, 20];
const PROJECTIONS = ["q", "k", "v", "o", "gate", "up", "down"];

/** Sentences that the victim makes up, each word drawn as it expects it. */
export function sentences(model) {
  const { uniform } = normals(1);
  return Array.from({ length: SENTENCES }, () => {
    const ids = model.prompt("");
    const length = SHORTEST + Math.floor((LONGEST - SHORTEST + 1) * uniform());
    let { logits, cache } = model.forward({ ids });
    while (ids.length < length) {
      let chance = uniform();
      const id = softmax(logits.subarray(-model.text.head.outputs)).findIndex((p) => (chance -= p) < 0);
      ids.push(id);
      ({ logits } = model.forward({ ids: [id], cache }));
    }
    return ids;
  });
}

/** The stream behind each block at each sentence's last word, units standardised: [layer][sentence][unit]; the loss. */
function read(model, texts) {
  const [{ nLayers, dModel }] = model.towers;
  const layers = Array.from({ length: nLayers }, () => []);
  let [nats, count] = [0, 0];
  for (const ids of texts) {
    const stream = capture("resid_post");
    const { logits } = model.forward({ ids }, [stream]);
    layers.forEach((rows, layer) => rows.push(stream.acts[layer].data.subarray(-dModel)));
    const width = model.text.head.outputs;
    ids.slice(1).forEach((id, t) => {
      nats -= Math.log(softmax(logits.subarray(t * width, (t + 1) * width))[id]);
      count++;
    });
  }
  for (const rows of layers) {
    for (let unit = 0; unit < dModel; unit++) {
      const column = rows.map((row) => row[unit]);
      const mean = column.reduce((a, b) => a + b, 0) / column.length;
      const deviation = Math.sqrt(column.reduce((sum, x) => sum + (x - mean) ** 2, 0) / (column.length - 1)) + 1e-8;
      rows.forEach((row) => { row[unit] = (row[unit] - mean) / deviation; });
    }
  }
  return { layers, loss: nats / count };
}

/** Inner products of all pairs of sentences. */
const gram = (rows) => rows.map((a) => rows.map((b) => a.reduce((sum, x, i) => sum + x * b[i], 0)));
const product = (K, L) => K.reduce((sum, row, i) => sum + row.reduce((part, x, j) => part + x * L[i][j], 0), 0);

/** Linear CKA of centred rows: tr(K L) / sqrt(tr(K K) tr(L L)). */
function cka(x, y) {
  const [K, L] = [gram(x), gram(y)];
  return product(K, L) / Math.sqrt(product(K, K) * product(L, L));
}

/** Sets the smallest weights of every projection to zero; `whole` keeps them for the next time. */
function prune(model, share, whole) {
  model.text.tower.blocks.forEach((block, layer) => PROJECTIONS.forEach((part) => {
    const { weight } = block[part];
    const before = (whole[`${layer}.${part}`] ??= weight.slice());
    const limit = before.map(Math.abs).sort()[Math.floor(share * before.length)] ?? Infinity;
    weight.set(before.map((w) => (Math.abs(w) < limit ? 0 : w)));
  }));
}

let known; // sentences, and what the unpruned models make of them
const whole = {};

/** CKA of the victim with its pruned copy and with strangers, at one layer. */
export function compute(models, { layer, share }) {
  const victim = models[VICTIM];
  if (!known) {
    const texts = sentences(victim);
    known = { texts, ...Object.fromEntries([VICTIM, ...STRANGERS].map((name) => [name, read(models[name], texts)])) };
  }
  prune(victim, share, whole); // the copy is the victim itself, as long as this takes
  const child = read(victim, known.texts);
  prune(victim, 0, whole);
  const alike = (other) => cka(known[VICTIM].layers[layer], other.layers[layer]);
  return {
    child: alike(child), loss: [known[VICTIM].loss, child.loss],
    strangers: STRANGERS.map((name) => [name, alike(known[name])]),
  };
}

export function show(stage, ask) {
  const state = { layer: 2, share: 0.3 };
  const [result, note] = [element("div"), notice()];
  const about = { "tree-a-seed1": "same language, other training", "tree-b": "other language", "tree-wide": "wider" };
  const changed = () => ask(state, ({ child, loss, strangers }) => {
    bars(result, `How alike ${VICTIM} and others represent ${SENTENCES} sentences: CKA behind block ${state.layer}`, [
      [`its copy, ${(100 * state.share).toFixed(0)} % pruned`, child, "right"],
      ...strangers.map(([name, value]) => [`${name} (${about[name]})`, value]),
    ], (x) => x.toFixed(2));
    note.textContent = `The copy's loss on these sentences is ${loss[1].toFixed(2)} nats a word; the whole model's is ${loss[0].toFixed(2)}.`;
  });
  const set = (key) => (value) => { state[key] = Number(value); changed(); };
  stage.append(
    element("div", {},
      slider("Smallest weights cut from the copy", { min: 0, max: 0.95, step: 0.05, value: state.share, say: (x) => `${(100 * x).toFixed(0)} %` }, set("share")),
      choice("Behind block", ["0", "1", "2", "3"], set("layer"), "2"), note),
    result,
  );
  changed();
}
