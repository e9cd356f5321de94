// Towers of transformer blocks. GPT-2, Llama, CLIP's vision tower and ViT differ in norms, positions and
// activations, and in the names of their weights; their blocks do the same things in the same order:
// x += attention(norm(x)), x += mlp(norm(x)).
//
// Activations are Float32Arrays of [sequence, width], row after row; sums are taken in double precision.

const sigmoid = (x) => 1 / (1 + Math.exp(-x));

/** The error function, to 1.5e-7 (Abramowitz and Stegun, 7.1.26). */
function erf(x) {
  const t = 1 / (1 + 0.3275911 * Math.abs(x));
  const tail = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t;
  return Math.sign(x) * (1 - tail * Math.exp(-x * x));
}

/** By the names that configurations use. */
const ACTIVATIONS = {
  gelu: (x) => 0.5 * x * (1 + erf(x * Math.SQRT1_2)),
  gelu_new: (x) => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3))),
  quick_gelu: (x) => x * sigmoid(1.702 * x),
  sigmoid,
  silu: (x) => x * sigmoid(x),
};

export function activation(name) {
  if (!(name in ACTIVATIONS)) throw new Error(`the activation ${name} is not supported`);
  return ACTIVATIONS[name];
}

/** Layer norm, or, where there is no bias, the root mean square norm of Llama: [rows, width]. */
export function normalise(x, { weight, bias }, eps) {
  const width = weight.length;
  const y = new Float32Array(x.length);
  for (let start = 0; start < x.length; start += width) {
    let mean = 0;
    if (bias) {
      for (let i = 0; i < width; i++) mean += x[start + i];
      mean /= width;
    }
    let variance = 0;
    for (let i = 0; i < width; i++) variance += (x[start + i] - mean) ** 2;
    const scale = 1 / Math.sqrt(variance / width + eps);
    for (let i = 0; i < width; i++) y[start + i] = (x[start + i] - mean) * scale * weight[i] + (bias ? bias[i] : 0);
  }
  return y;
}

/** Adds y to x in place. */
export function add(x, y) {
  for (let i = 0; i < x.length; i++) x[i] += y[i];
  return x;
}

/** Arrays behind one another. */
export function concat(...arrays) {
  const all = new Float32Array(arrays.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const array of arrays) {
    all.set(array, at);
    at += array.length;
  }
  return all;
}

/** Keys and values of what a tower has read, [layer][position, kv head, d_head]. */
export class Cache {
  constructor(nLayers) {
    this.length = 0;
    this.keys = new Array(nLayers).fill(new Float32Array(0));
    this.values = new Array(nLayers).fill(new Float32Array(0));
  }

  /** Adds a layer's new keys and values; all of them. */
  append(layer, keys, values) {
    return [
      this.keys[layer] = concat(this.keys[layer], keys),
      this.values[layer] = concat(this.values[layer], values),
    ];
  }
}

/** A stack of blocks.
 *
 * @param {object} facts - `name` (text or vision), `nHeads`, `nKvHeads`, `dHead`, `dModel`, `eps` of the norms,
 *   `act` of the MLPs, `causal`; `theta`, the base of rotary positions, or undefined
 * @param {object[]} blocks - of each the norms `norm1` and `norm2`, the projections `q`, `k`, `v`, `o`, `up`,
 *   `down` and, where the MLP is gated, `gate`
 * @param {import("./matmul.js").Products} products - multiplies
 */
export class Tower {
  constructor(facts, blocks, products) {
    Object.assign(this, facts, { blocks, products, nLayers: blocks.length });
    this.act = activation(facts.act);
  }

  /** What hooks make of an activation. */
  tap(hooks, site, layer, data, ...shape) {
    for (const hook of hooks) {
      const wanted = hook.site === site && hook.tower === this.name && (hook.layers?.includes(layer) ?? true);
      if (wanted) data = hook.see(data, { shape, layer }) ?? data;
    }
    return data;
  }

  /** The residual stream [sequence, d_model] after all blocks; `cache` holds what was read before. */
  run(x, hooks, cache = new Cache(this.nLayers)) {
    const { products, dModel, nHeads, nKvHeads, dHead, eps } = this;
    const length = x.length / dModel;
    const linear = (input, projection) => products.linear(input, length, projection);
    const turns = this.theta && this.rotations(cache.length, length);
    for (const [layer, block] of this.blocks.entries()) {
      const tap = (site, data, ...shape) => this.tap(hooks, site, layer, data, length, ...shape);
      x = tap("resid_pre", x, dModel);
      const read = normalise(x, block.norm1, eps);
      const q = tap("q", linear(read, block.q), nHeads, dHead);
      const k = tap("k", linear(read, block.k), nKvHeads, dHead);
      const v = tap("v", linear(read, block.v), nKvHeads, dHead);
      if (turns) for (const heads of [q, k]) rotate(heads, turns, length, dHead);
      const [keys, values] = cache.append(layer, k, v);
      const z = tap("z", this.attend(q, keys, values, length, layer, hooks), nHeads, dHead);
      x = add(x.slice(), tap("attn_out", linear(z, block.o), dModel));
      x = tap("resid_mid", x, dModel);
      const mid = normalise(x, block.norm2, eps);
      const neurons = linear(mid, block.up);
      const gate = block.gate && linear(mid, block.gate);
      for (let i = 0; i < neurons.length; i++) neurons[i] = gate ? this.act(gate[i]) * neurons[i] : this.act(neurons[i]);
      const active = tap("mlp_act", neurons, block.up.outputs);
      x = add(x.slice(), tap("mlp_out", linear(active, block.down), dModel));
      x = tap("resid_post", x, dModel);
    }
    cache.length += length;
    return x;
  }

  /** What attention puts out, z [query, head, d_head]. */
  attend(q, keys, values, nQueries, layer, hooks) {
    const { nHeads, nKvHeads, dHead, causal } = this;
    const nKeys = keys.length / (nKvHeads * dHead);
    const first = nKeys - nQueries; // position of the first query
    const seen = (query) => (causal ? first + query + 1 : nKeys);
    const kvHead = (head) => Math.floor((head * nKvHeads) / nHeads); // several heads may share keys and values
    const shape = [nHeads, nQueries, nKeys];
    const scoresOfAll = hooks.some(({ site }) => site === "scores"); // they also see what the mask hides later
    const each = (use) => {
      for (let head = 0, row = 0; head < nHeads; head++) {
        for (let query = 0; query < nQueries; query++, row += nKeys) use(head, query, row, (query * nHeads + head) * dHead);
      }
    };

    let scores = new Float32Array(nHeads * nQueries * nKeys);
    const scale = 1 / Math.sqrt(dHead);
    each((head, query, row, at) => {
      const end = scoresOfAll ? nKeys : seen(query);
      for (let key = 0, from = kvHead(head) * dHead; key < end; key++, from += nKvHeads * dHead) {
        let sum = 0;
        for (let i = 0; i < dHead; i++) sum += q[at + i] * keys[from + i];
        scores[row + key] = sum * scale;
      }
    });
    scores = this.tap(hooks, "scores", layer, scores, ...shape);

    let pattern = scores; // in its place
    each((head, query, row) => {
      const end = row + seen(query);
      let [max, sum] = [-Infinity, 0];
      for (let i = row; i < end; i++) if (scores[i] > max) max = scores[i];
      for (let i = row; i < end; i++) sum += pattern[i] = Math.exp(scores[i] - max);
      for (let i = row; i < end; i++) pattern[i] /= sum;
      pattern.fill(0, end, row + nKeys);
    });
    pattern = this.tap(hooks, "pattern", layer, pattern, ...shape);

    const z = new Float32Array(nQueries * nHeads * dHead);
    each((head, query, row, at) => {
      for (let key = 0, from = kvHead(head) * dHead; key < nKeys; key++, from += nKvHeads * dHead) {
        const weight = pattern[row + key];
        if (weight !== 0) for (let i = 0; i < dHead; i++) z[at + i] += weight * values[from + i];
      }
    });
    return z;
  }

  /** Cosines and sines of rotary positions, [position, d_head / 2] each. */
  rotations(start, length) {
    const half = this.dHead / 2;
    const angle = (i) => (start + Math.floor(i / half)) / this.theta ** ((i % half) / half);
    const angles = Float64Array.from({ length: length * half }, (_, i) => angle(i));
    return [angles.map(Math.cos), angles.map(Math.sin)];
  }
}

/** Turns queries or keys [position, head, d_head] by their positions, in place: dimension i with i + d_head / 2. */
function rotate(heads, [cosines, sines], length, dHead) {
  const half = dHead / 2;
  const nHeads = heads.length / (length * dHead);
  for (let position = 0, at = 0; position < length; position++) {
    for (let head = 0; head < nHeads; head++, at += dHead) {
      for (let i = 0; i < half; i++) {
        const [cos, sin] = [cosines[position * half + i], sines[position * half + i]];
        const [a, b] = [heads[at + i], heads[at + half + i]];
        heads[at + i] = a * cos - b * sin;
        heads[at + half + i] = b * cos + a * sin;
      }
    }
  }
}
