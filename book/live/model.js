// The organisms as models: GPT-2, Llama, LLaVA (a CLIP tower, a projector and a Llama) and ViT.
//
//     const model = open(buffer);
//     const { logits } = model.forward({ ids: model.prompt("what colour is the star", 1), image });
//     model.generate({ ids, image }, 16, [edit("z", silence, { layers: [2] })]);
//
// A batch is one text; before it may stand a picture or, as a list, several. Logits are [position, vocabulary]; a ViT's are [class].

import { resolve } from "./hooks.js";
import { Products } from "./matmul.js";
import { patches, pixels } from "./pictures.js";
import { Tokenizer } from "./text.js";
import { Cache, Tower, activation, add, concat, normalise } from "./transformer.js";
import { join, read } from "./weights.js";

/** The weights of a model by their names; matrices are put where products find them. */
class Store {
  constructor(tensors, simd) {
    this.tensors = tensors;
    const sizes = Object.values(tensors).map(({ data }) => data.length);
    const widths = Object.values(tensors).flatMap(({ shape }) => [shape[0], shape.slice(1).reduce((a, b) => a * b, 1)]);
    this.products = new Products(sizes.reduce((a, b) => a + b, 0), Math.max(...widths), simd);
    this.placed = new Map();
  }

  tensor(name) {
    const found = this.tensors[name];
    if (!found) throw new Error(`the weights lack ${name}`);
    return found;
  }

  vector(name) {
    return this.tensor(name).data;
  }

  norm(name) {
    return { weight: this.vector(`${name}.weight`), bias: this.tensors[`${name}.bias`]?.data };
  }

  /** A linear layer: `weight` [outputs, inputs], and its bias if it has one. */
  linear(name) {
    if (!this.placed.has(name)) {
      const { data, shape } = this.tensor(`${name}.weight`);
      const inputs = data.length / shape[0]; // a convolution by patches is linear in a patch
      const bias = this.tensors[`${name}.bias`]?.data;
      this.placed.set(name, { weight: this.products.place(data), bias, inputs, outputs: shape[0] });
    }
    return this.placed.get(name);
  }

  /** What gives the logits: a layer of its own, or the table of embeddings. */
  head(name, table) {
    return this.linear(`${name}.weight` in this.tensors ? name : table);
  }

  /** A part of a layer of GPT-2, whose weights stand the other way round: [inputs, outputs]. */
  transposed(name, part = 0, parts = 1) {
    const { data, shape: [inputs, all] } = this.tensor(`${name}.weight`);
    const [outputs, from] = [all / parts, (part * all) / parts];
    const turned = Float32Array.from({ length: outputs * inputs }, (_, i) => data[(i % inputs) * all + from + Math.floor(i / inputs)]);
    const bias = this.vector(`${name}.bias`).slice(from, from + outputs);
    return { weight: this.products.place(turned), bias, inputs, outputs };
  }
}

/** Blocks whose parts have these names below that of the block. */
function blocks(store, path, n, names) {
  return Array.from({ length: n }, (_, layer) => Object.fromEntries(Object.entries(names).map(([part, name]) => {
    const whole = `${path}.${layer}.${name}`;
    return [part, part.startsWith("norm") ? store.norm(whole) : store.linear(whole)];
  })));
}

/** What the configurations of Llama, CLIP and ViT call alike. */
function dimensions(config) {
  const { hidden_size: dModel, num_attention_heads: nHeads, num_key_value_heads: nKvHeads = nHeads, hidden_act: act } = config;
  return { dModel, nHeads, nKvHeads, dHead: config.head_dim ?? dModel / nHeads, act };
}

function gpt2(store, config) {
  const [dModel, nHeads] = [config.n_embd, config.n_head];
  if (config.scale_attn_by_inverse_layer_idx) throw new Error("scores scaled by the layer's number are not supported");
  const facts = {
    name: "text", dModel, nHeads, nKvHeads: nHeads, dHead: dModel / nHeads, eps: config.layer_norm_epsilon,
    act: config.activation_function, causal: true,
  };
  const parts = Array.from({ length: config.n_layer }, (_, layer) => {
    const path = `transformer.h.${layer}`;
    const [q, k, v] = [0, 1, 2].map((part) => store.transposed(`${path}.attn.c_attn`, part, 3));
    const [o, up, down] = ["attn.c_proj", "mlp.c_fc", "mlp.c_proj"].map((name) => store.transposed(`${path}.${name}`));
    return { norm1: store.norm(`${path}.ln_1`), q, k, v, o, norm2: store.norm(`${path}.ln_2`), up, down };
  });
  return {
    tower: new Tower(facts, parts, store.products),
    table: store.tensor("transformer.wte.weight"),
    positions: store.tensor("transformer.wpe.weight"),
    norm: store.norm("transformer.ln_f"),
    head: store.head("lm_head", "transformer.wte"),
  };
}

const QKV = { q: "self_attn.q_proj", k: "self_attn.k_proj", v: "self_attn.v_proj" };
const LLAMA = {
  norm1: "input_layernorm", ...QKV, o: "self_attn.o_proj",
  norm2: "post_attention_layernorm", gate: "mlp.gate_proj", up: "mlp.up_proj", down: "mlp.down_proj",
};

function llama(store, config, path = "") {
  const { rope_type: kind, rope_theta: theta } = config.rope_parameters;
  if (kind !== "default") throw new Error(`rotary positions of the kind ${kind} are not supported`);
  const facts = { name: "text", ...dimensions(config), eps: config.rms_norm_eps, theta, causal: true };
  return {
    tower: new Tower(facts, blocks(store, `${path}model.layers`, config.num_hidden_layers, LLAMA), store.products),
    table: store.tensor(`${path}model.embed_tokens.weight`),
    norm: store.norm(`${path}model.norm`),
    head: store.head(`${path}lm_head`, `${path}model.embed_tokens`),
  };
}

/** Names in a vision tower: those of a block's parts, of the list of blocks, and of what embeds a picture. */
const CLIP = {
  norm1: "layer_norm1", ...QKV, o: "self_attn.out_proj", norm2: "layer_norm2", up: "mlp.fc1", down: "mlp.fc2",
};
const CLIP_EMBEDS = ["encoder.layers", "class_embedding", "patch_embedding", "position_embedding.weight"];
const VIT = {
  norm1: "layernorm_before", q: "attention.attention.query", k: "attention.attention.key", v: "attention.attention.value",
  o: "attention.output.dense", norm2: "layernorm_after", up: "intermediate.dense", down: "output.dense",
};
const VIT_EMBEDS = ["encoder.layer", "cls_token", "patch_embeddings.projection", "position_embeddings"];

/** A vision tower: a class token, then the patches. */
function vision(store, config, path, names, [list, first, embed, positions]) {
  const facts = { name: "vision", ...dimensions(config), eps: config.layer_norm_eps, causal: false };
  return {
    tower: new Tower(facts, blocks(store, `${path}.${list}`, config.num_hidden_layers, names), store.products),
    first: store.vector(`${path}.embeddings.${first}`),
    embed: store.linear(`${path}.embeddings.${embed}`),
    positions: store.vector(`${path}.embeddings.${positions}`),
    channels: config.num_channels,
    side: config.image_size,
    patch: config.patch_size,
  };
}

/** What makes a model of a class from its weights, its configuration and its other files (`part`). */
export const BUILDERS = {
  GPT2LMHeadModel: (store, config, part) => new Model({ text: gpt2(store, config) }, store, config, part),
  LlamaForCausalLM: (store, config, part) => new Model({ text: llama(store, config) }, store, config, part),
  LlavaForConditionalGeneration(store, config, part) {
    if (config.vision_feature_layer !== -1 || config.vision_feature_select_strategy !== "default") {
      throw new Error("image features of another layer than the last are not supported");
    }
    const sight = {
      ...vision(store, config.vision_config, "vision_tower", CLIP, CLIP_EMBEDS),
      before: store.norm("vision_tower.pre_layrnorm"),
      projector: ["linear_1", "linear_2"].map((name) => store.linear(`multi_modal_projector.${name}`)),
      act: activation(config.projector_hidden_act),
    };
    return new Model({ text: llama(store, config.text_config, "language_model."), sight }, store, config, part);
  },
  ViTForImageClassification(store, config, part) {
    const tower = vision(store, config, "vit", VIT, VIT_EMBEDS);
    const sight = { ...tower, norm: store.norm("vit.layernorm"), head: store.linear("classifier") };
    return new Model({ sight }, store, config, part);
  },
};

/** A model from its file and, if that is a difference, the file of its parent.
 *
 * A file is the model's safetensors; its metadata hold the JSON of `config`, `tokenizer`, `processor` and
 * `generation`, as far as there is any.
 *
 * @param {ArrayBuffer} file
 * @param {ArrayBuffer} [parent]
 * @param {{simd?: boolean}} [options] - `simd: false` computes in plain JavaScript
 */
export function open(file, parent, { simd } = {}) {
  const { tensors, metadata } = read(file);
  const part = (name) => (metadata[name] ? JSON.parse(metadata[name]) : {});
  const config = part("config");
  const [kind] = config.architectures ?? ["no class"];
  if (!(kind in BUILDERS)) throw new Error(`${kind} is not supported here: ${Object.keys(BUILDERS).join(", ")} are`);
  if (metadata.parent && !parent) throw new Error(`these weights are a difference from those of ${metadata.parent.split(" ")[0]}`);
  const store = new Store(metadata.parent ? join(tensors, read(parent).tensors) : tensors, simd);
  return BUILDERS[kind](store, config, part);
}

class Model {
  constructor({ text, sight }, { products }, config, part) {
    Object.assign(this, { text, vision: sight, products, imageToken: config.image_token_index });
    /** The towers, the one that hooks mean first. */
    this.towers = [text, sight].filter(Boolean).map(({ tower }) => tower);
    this.tokenizer = text && new Tokenizer(part("tokenizer"));
    const processor = part("processor");
    this.pictures = processor.image_processor ?? processor;
    this.ends = [part("generation").eos_token_id ?? config.text_config?.eos_token_id ?? config.eos_token_id ?? []].flat();
  }

  /** Image tokens that a picture becomes. */
  get nPatches() {
    return (this.vision.side / this.vision.patch) ** 2;
  }

  /** A picture from a canvas as `image` of `forward`. */
  picture(image) {
    return pixels(image, this.pictures, this.vision.channels);
  }

  /** A text's tokens; before the words stand those of `nImages` pictures. */
  prompt(text, nImages = 0) {
    const { before } = this.tokenizer;
    return [...before, ...new Array(nImages && nImages * this.nPatches).fill(this.imageToken), ...this.tokenizer.encode(text)];
  }

  /** The residual stream of the vision tower after its blocks, the class token first. */
  #look(image, hooks) {
    const { tower, embed, positions, channels, side, patch, before } = this.vision;
    if (image.length !== channels * side * side) throw new Error(`the image has ${image.length} numbers, not ${channels * side * side}`);
    const n = this.nPatches;
    const x = new Float32Array((n + 1) * tower.dModel);
    x.set(this.vision.first);
    x.set(this.products.linear(patches(image, channels, side, patch), n, embed), tower.dModel);
    const embedded = tower.tap(hooks, "embed", 0, add(x, positions), n + 1, tower.dModel);
    return tower.run(before ? normalise(embedded, before, tower.eps) : embedded, hooks);
  }

  /** Image tokens as the language model reads them, [patch, d_model], of one picture or of several in turn. */
  features(image, hooks = []) {
    const { tower, projector: [inner, outer], act } = this.vision;
    const resolved = resolve(hooks, this.towers);
    return concat(...[image].flat().map((one) => {
      const seen = this.#look(one, resolved).subarray(tower.dModel);
      return this.products.linear(this.products.linear(seen, this.nPatches, inner).map(act), this.nPatches, outer);
    }));
  }

  /** One pass.
   *
   * @param {{ids?: number[], image?: Float32Array | Float32Array[], features?: Float32Array, cache?: Cache}} inputs -
   *   tokens, the picture or pictures, or in their place the `features` that they gave before; with `cache`, the tokens go on with a text
   * @param {object[]} hooks - captures and edits, in their order
   * @returns {{logits: Float32Array, cache?: Cache}}
   */
  forward({ ids, image, features, cache }, hooks = []) {
    const resolved = resolve(hooks, this.towers);
    if (!this.text) return { logits: this.lens(this.#look(image, resolved).subarray(0, this.vision.tower.dModel)) };
    const { tower, table, positions } = this.text;
    const { dModel } = tower;
    cache ??= new Cache(tower.nLayers);
    if (ids.some((id) => !(id >= 0 && id < table.shape[0]))) throw new Error(`a token is none of the model's ${table.shape[0]}`);
    const end = cache.length + ids.length;
    if (positions && end > positions.shape[0]) throw new Error(`the text has ${end} tokens, the model ${positions.shape[0]} positions: shorten it`);
    const row = (data, i) => data.subarray(i * dModel, (i + 1) * dModel);
    let x = new Float32Array(ids.length * dModel);
    ids.forEach((id, t) => x.set(row(table.data, id), t * dModel));
    x = tower.tap(resolved, "embed", 0, x, ids.length, dModel);
    if (positions) add(x, positions.data.subarray(cache.length * dModel, end * dModel));
    const places = ids.flatMap((id, t) => (id === this.imageToken ? [t] : []));
    if (places.length) {
      features ??= this.features(image, hooks);
      if (features.length !== places.length * dModel) throw new Error(`${places.length} image tokens, but the pictures give ${features.length / dModel}`);
      places.forEach((t, n) => x.set(row(features, n), t * dModel));
    }
    return { logits: this.lens(tower.run(x, resolved, cache)), cache };
  }

  /** The logits [row, vocabulary] if these rows of the residual stream left the last block; a ViT's [row, class]. */
  lens(resid) {
    const { tower, norm, head } = this.text ?? this.vision;
    return this.products.linear(normalise(resid, norm, tower.eps), resid.length / tower.dModel, head);
  }

  /** The most probable tokens, one after the other, until the model ends its answer or `most` are there. */
  generate(inputs, most, hooks = []) {
    const answer = [];
    let { logits, cache } = this.forward(inputs, hooks);
    for (;;) {
      const last = logits.subarray(-this.text.head.outputs);
      const id = last.indexOf(Math.max(...last));
      answer.push(id);
      if (answer.length === most || this.ends.includes(id)) return answer;
      ({ logits } = this.forward({ ids: [id], cache }, hooks));
    }
  }
}

/** Probabilities from logits. */
export function softmax(logits) {
  const max = Math.max(...logits);
  const powers = Float64Array.from(logits, (x) => Math.exp(x - max));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((power) => power / sum);
}
