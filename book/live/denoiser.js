// The denoiser of the 8 x 8 digits (`data.recipes.diffusion.Denoiser`), and how it draws. Importing this adds its
// class to those that `open` knows.

import { BUILDERS } from "./model.js";
import { activation, add, normalise } from "./transformer.js";

export const STEPS = 1000; // noise levels

const silu = activation("silu");

/** Share of the image's variance that is left at each level; 1 at level -1, the finished image. */
const left = [];
for (let t = 0, product = 1; t < STEPS; t++) left[t] = product *= 1 - (1e-4 + ((0.02 - 1e-4) * t) / (STEPS - 1));
export const alphaBar = (t) => left[t] ?? 1;

class Denoiser {
  constructor(store, { width, depth, embedding }) {
    const linear = (name) => store.linear(name);
    Object.assign(this, { products: store.products, width, half: embedding / 2 });
    [this.level, this.embed, this.unembed, this.last] = ["level", "embed", "unembed", "modulation.scale_shift"].map(linear);
    this.blocks = Array.from({ length: depth }, (_, i) => ["modulation.scale_shift", "up", "down"].map((name) => linear(`blocks.${i}.${name}`)));
    this.norm = { weight: new Float32Array(width).fill(1), bias: new Float32Array(width) };
  }

  /** The noise in images x [image, 64], from -1 (paper) to 1 (ink), at level t. */
  forward(x, t) {
    const { products, half, width } = this;
    const rows = x.length / 64;
    const angles = Float64Array.from({ length: half }, (_, i) => t * Math.exp((-Math.log(10000) / half) * i));
    const level = products.linear([...angles.map(Math.sin), ...angles.map(Math.cos)], 1, this.level).map(silu);
    const modulated = (h, scaleShift) => { // a norm whose scale and shift depend on the level
      const change = products.linear(level, 1, scaleShift);
      return normalise(h, this.norm, 1e-5).map((value, i) => silu(value * (1 + change[i % width]) + change[width + (i % width)]));
    };
    let h = products.linear(x, rows, this.embed);
    for (const [scaleShift, up, down] of this.blocks) {
      const inner = products.linear(modulated(h, scaleShift), rows, up).map(silu);
      h = add(h, products.linear(inner, rows, down));
    }
    return products.linear(modulated(h, this.last), rows, this.unembed);
  }
}

BUILDERS.Denoiser = (store, config) => new Denoiser(store, config);

/** Images drawn by DDIM without fresh noise (Song et al. 2021), from noise x [image, 64].
 *
 * @param {(t: number) => Denoiser} at - which network predicts the noise at a level
 */
export function sample(at, x, nSteps) {
  const stride = Math.floor(STEPS / nSteps);
  for (let t = (nSteps - 1) * stride; t >= 0; t -= stride) {
    const [now, next] = [alphaBar(t), alphaBar(t - stride)];
    const noise = at(t).forward(x, t);
    x = x.map((value, i) => {
      const image = Math.max(-1, Math.min(1, (value - Math.sqrt(1 - now) * noise[i]) / Math.sqrt(now)));
      return Math.sqrt(next) * image + Math.sqrt(1 - next) * noise[i];
    });
  }
  return x;
}
