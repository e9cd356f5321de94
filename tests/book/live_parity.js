// One organism in the browser against what `lib` computed on the same inputs: the largest differences.

import { capture, edit } from "./live/hooks.js";
import { open } from "./live/model.js";
import { concat } from "./live/transformer.js";
import { read } from "./live/weights.js";

/** The edit of every site, in test_live.py too: it tells every number's place in the activation.
 *
 * Of several pictures each is a pass of the vision tower: what a capture keeps is that of the last.
 */
const shake = (data) => data.map((x, i) => 0.5 * x + 0.25 * Math.sin(i));

const apart = (a, b) => (a.length === b.length ? a.reduce((max, x, i) => Math.max(max, Math.abs(x - b[i])), 0) : Infinity);

export function compare(file, parent, reference, options) {
  const model = open(file, parent, options);
  const { tensors, metadata } = read(reference);
  const { text, images, ids, answer, edits } = JSON.parse(metadata.facts);
  const image = [];
  const [, height, width] = tensors.pictures?.shape ?? [];
  for (let n = 0; n < images; n++) {
    const data = Uint8ClampedArray.from(tensors.pictures.data.subarray(4 * width * height * n, 4 * width * height * (n + 1)));
    image.push(model.picture({ data, width, height }));
  }
  const inputs = { ids: text === null ? null : model.prompt(text, images), image: images === 1 ? image[0] : image };
  const differences = {};
  if (images) differences.pixels = apart(concat(...image), tensors.pixels.data);
  if (text !== null) differences.tokens = apart(inputs.ids, ids);

  const captures = model.towers.map(({ name }) => capture("pattern", { tower: name }));
  differences.logits = apart(model.forward(inputs, captures).logits, tensors.logits.data);
  model.towers.forEach(({ name, nLayers }, i) => {
    for (let layer = 0; layer < nLayers; layer++) {
      const { data } = captures[i].acts[layer];
      differences[`pattern ${name} ${layer}`] = apart(data, tensors[`pattern ${name} ${layer}`].data);
    }
  });
  for (const [name, site, layer] of edits) {
    const captured = capture(site, { layers: [layer], tower: name });
    const { logits } = model.forward(inputs, [captured, edit(site, shake, { layers: [layer], tower: name })]);
    const key = `${name} ${site} ${layer}`;
    // Activations and edited logits grow with what they are made of; a difference is a share of the largest.
    const share = (found, expected) => apart(found, expected) / Math.max(1, ...expected.map(Math.abs));
    differences[`capture ${key}`] = share(captured.acts[layer].data, tensors[`capture ${key}`].data);
    differences[`edit ${key}`] = share(logits, tensors[`edit ${key}`].data);
  }
  const said = text === null ? null : model.generate(inputs, answer.length);
  return { differences, said, answer, text: text === null ? null : model.tokenizer.decode(said) };
}
