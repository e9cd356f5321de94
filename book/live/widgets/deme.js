// Two denoisers that share the noise levels: which of them draws, and which finishes, is the reader's choice.

import { choice, element, normals, notice, paint, slider } from "../controls.js";
import { STEPS, alphaBar, sample } from "../denoiser.js";
import { loadDigits } from "../scene.js";

const [DRAWN, NOISE_STEPS] = [16, 50];
const NAMES = ["digits-ddpm", "digits-ddpm-narrow"];

/** Digits that are drawn from one noise, by one network above a level and another one below it; losses. */
export function compute(models, { above, below, border, seed, images }) {
  const normal = normals(seed);
  const start = Float32Array.from({ length: 64 * DRAWN }, () => normal());
  const drawn = sample((t) => models[t >= border ? above : below], start, NOISE_STEPS);
  // How well each network knows the noise in real digits, in the range that it has.
  const chance = normals(2);
  const x = Float32Array.from(images.flat(), (ink) => ink / 127.5 - 1);
  const noise = x.map(() => chance());
  const loss = (name, from, to) => {
    const levels = [0.125, 0.375, 0.625, 0.875].map((place) => Math.floor(from + place * (to - from)));
    const errors = levels.map((t) => {
      const kept = alphaBar(t);
      const predicted = models[name].forward(x.map((value, i) => Math.sqrt(kept) * value + Math.sqrt(1 - kept) * noise[i]), t);
      return predicted.reduce((sum, value, i) => sum + (value - noise[i]) ** 2, 0) / x.length;
    });
    return errors.reduce((a, b) => a + b) / errors.length;
  };
  return { drawn, losses: NAMES.map((name) => [loss(name, border, STEPS), loss(name, 0, border)]) };
}

export async function show(stage, ask) {
  const digits = await loadDigits();
  const state = { above: NAMES[0], below: NAMES[0], border: 500, seed: 1 };
  const canvases = Array.from({ length: DRAWN }, (_, i) => element("canvas", { class: "live-heat", role: "img", "aria-label": `Drawn digit ${i + 1}` }));
  const [pictures, note] = [element("div", { class: "live-maps" }, ...canvases), notice()];
  const images = digits.flatMap((some) => some.slice(0, 4));
  const changed = () => ask({ ...state, images }, ({ drawn, losses }) => {
    canvases.forEach((canvas, i) => paint(canvas, drawn.subarray(64 * i, 64 * (i + 1)).map((x) => 127.5 * (x + 1)), 8));
    const said = ([high, low]) => `${high.toFixed(3)} above and ${low.toFixed(3)} below`;
    note.textContent = `Squared error of the predicted noise on ${images.length} real digits, per pixel: ${NAMES.map((name, i) => `${name} ${said(losses[i])}`).join("; ")} the border.`;
  });
  const set = (key) => (value) => { state[key] = value; changed(); };
  stage.append(
    element("div", {},
      slider("Border between the two ranges of noise levels", { min: 50, max: 950, step: 50, value: state.border }, set("border")),
      element("div", { class: "live-row" },
        choice("Above it, where noise is strong", NAMES, set("above"), state.above),
        choice("Below it", NAMES, set("below"), state.below),
        element("button", { type: "button", click: () => { state.seed++; changed(); } }, "Other noise")),
      note),
    pictures,
  );
  changed();
}
