// Softmax regression on handwritten digits, trained here by sharpness-aware minimisation (SAM) until its gradient
// vanishes; what leaving one image out would do, estimated by influence functions and tried.

import { bars, element, normals, notice, paint, slider } from "../controls.js";
import { loadDigits } from "../scene.js";

const [CLASSES, FEATURES] = [10, 65]; // 64 pixels and a constant
const SIZE = CLASSES * FEATURES;
const LAM = 0.1; // strength of the L2 penalty
const [MOST_STEPS, CLOSE] = [30, 1e-8];

const dot = (a, b) => a.reduce((sum, x, i) => sum + x * b[i], 0);
/** a + t b */
const plus = (a, b, t = 1) => a.map((x, i) => x + t * b[i]);
const norm = (a) => Math.sqrt(dot(a, a));

/** W x, [class]. */
function outputs(w, x) {
  return Float64Array.from({ length: CLASSES }, (_, k) => {
    let sum = 0;
    for (let i = 0; i < FEATURES; i++) sum += w[k * FEATURES + i] * x[i];
    return sum;
  });
}

function probabilities(w, x) {
  const z = outputs(w, x);
  const max = Math.max(...z);
  const powers = z.map((value) => Math.exp(value - max));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map((power) => power / sum);
}

/** The mean over a data set of weight * d[class] x[feature]; `d` says d for each sample. */
function mean(data, d) {
  const total = new Float64Array(SIZE);
  data.forEach(({ x, weight = 1 }, sample) => {
    const slopes = d(sample);
    for (let k = 0; k < CLASSES; k++) {
      const t = (weight * slopes[k]) / data.length;
      for (let i = 0; i < FEATURES; i++) total[k * FEATURES + i] += t * x[i];
    }
  });
  return total;
}

/** Of the loss by the outputs: p minus one at the label. */
const residual = (w, { x, y }) => probabilities(w, x).map((p, k) => p - (k === y));
const gradient = (w, data) => mean(data, (sample) => residual(w, data[sample]));

/** The risk's Hessian at w times v. */
function hessian(w, data) {
  const all = data.map(({ x }) => probabilities(w, x));
  return (v) => mean(data, (sample) => {
    const [p, moved] = [all[sample], outputs(v, data[sample].x)];
    const average = dot(p, moved);
    return p.map((value, k) => value * (moved[k] - average));
  });
}

/** How each sample's loss at w changes in the direction v. */
const slopes = (w, data, v) => data.map((sample) => dot(residual(w, sample), outputs(v, sample.x)));

/** e and g of SAM at w: the step of length rho up the gradient. */
function ascent(w, data, rho) {
  const g = gradient(w, data);
  return { g, e: g.map((x) => (rho * x) / norm(g)) };
}

/** Solves M x = b, M given by its product, by BiCGSTAB (van der Vorst 1992). */
function solve(product, b) {
  let [x, r, p] = [new Float64Array(SIZE), b, b];
  const shadow = b;
  for (let step = 0; step < 400 && norm(r) > 1e-9 * norm(b); step++) {
    const Mp = product(p);
    const alpha = dot(shadow, r) / dot(shadow, Mp);
    const half = plus(r, Mp, -alpha);
    const Mh = product(half);
    const omega = dot(Mh, half) / dot(Mh, Mh);
    x = plus(plus(x, p, alpha), half, omega);
    const next = plus(half, Mh, -omega);
    const beta = (dot(shadow, next) / dot(shadow, r)) * (alpha / omega);
    p = plus(next, plus(p, Mp, -omega), beta);
    r = next;
  }
  return x;
}

/** SAM at w: e, c and P by `project` (c P v), and products with both Hessians. */
function curvature(w, data, rho) {
  const { g, e } = ascent(w, data, rho);
  const size = norm(g);
  const project = (v) => plus(v, g, -dot(g, v) / size ** 2).map((x) => (rho / size) * x);
  return { e, project, H: hessian(w, data), B: hessian(plus(w, e), data) };
}

/** Weights at which SAM's gradient vanishes, by Newton's method from `w`; its Jacobian is B (I + c P H) + lambda I. */
export function train(data, rho, w = new Float64Array(SIZE)) {
  const pull = (at) => plus(gradient(plus(at, ascent(at, data, rho).e), data), at, LAM);
  let G = pull(w);
  for (let step = 0; step < MOST_STEPS && norm(G) > CLOSE; step++) {
    const { project, H, B } = curvature(w, data, rho);
    const move = solve((v) => plus(B(plus(v, project(H(v)))), v, LAM), G);
    let next;
    for (let length = 1; length > 1e-3; length /= 2) { // shorter, until the gradient is smaller
      next = plus(w, move, -length);
      if (norm(pull(next)) < norm(G)) break;
    }
    w = next;
    G = pull(w);
  }
  return w;
}

/** The change of the validation loss without each training image, by three influence functions. */
export function influences(w, data, validation, rho) {
  const { e, project, H, B } = curvature(w, data, rho);
  const regular = (product) => (v) => plus(product(v), v, LAM);
  const pull = gradient(w, validation);
  const scores = (v, at) => slopes(at, data, v).map((slope) => slope / data.length);
  const ordinary = solve(regular(H), pull);
  const frozen = solve(regular(B), pull);
  // The transposed system: of SAM's Jacobian B (I + c P H) + lambda I.
  const whole = solve(regular((v) => { const Bv = B(v); return plus(Bv, H(project(Bv))); }), pull);
  const throughE = slopes(w, data, project(B(whole)));
  return {
    IF: scores(ordinary, w),
    "SAM-IF": scores(frozen, plus(w, e)),
    "SAM-HIF": scores(whole, plus(w, e)).map((score, i) => score + throughE[i] / data.length),
  };
}

const loss = (w, data) => data.reduce((sum, { x, y }) => sum - Math.log(probabilities(w, x)[y]), 0) / data.length;
const sample = (image, y) => ({ x: [...image.map((ink) => ink / 255), 1], y });

let trained; // weights and influences, as long as data and rho stay the same

/** Influence of every training image, and what happens without one of them.
 *
 * @param {{train: {image: number[], label: number}[], validation: object[], rho: number, without: number}} request
 */
export function compute(models, request) {
  const { rho, without } = request;
  const [data, validation] = [request.train, request.validation].map((some) => some.map(({ image, label }) => sample(image, label)));
  const key = JSON.stringify([rho, data.map(({ y }) => y)]);
  if (trained?.key !== key) {
    const w = train(data, rho, trained?.w);
    trained = { key, w, scores: influences(w, data, validation, rho) };
  }
  const { w, scores } = trained;
  // Its loss counts 0; the mean stays that over all images, as in the chapter.
  const left = train(data.map((one, i) => (i === without ? { ...one, weight: 0 } : one)), rho, w);
  const before = loss(w, validation);
  return { scores, truth: loss(left, validation) - before, before };
}

export async function show(stage, ask) {
  const digits = await loadDigits();
  const some = (from, to) => digits.flatMap((images, label) => images.slice(from, to).map((image) => ({ image, label, true: label })));
  const { uniform } = normals(4);
  const training = some(0, 8);
  const state = { train: training, validation: some(8, 12), rho: 1, without: 0 };
  for (const one of training) if (uniform() < 0.15) one.label = (one.label + 1 + Math.floor(9 * uniform())) % 10;
  state.without = training.findIndex((one) => one.label !== one.true);
  const [result, note] = [element("div"), notice()];
  const pictures = training.map(({ image, true: digit }, i) => {
    const canvas = element("canvas", { class: "live-heat", "aria-hidden": "true" });
    paint(canvas, image, 8);
    const label = element("span");
    const button = element("button", { type: "button", click: () => { state.without = i; changed(); } }, canvas, label);
    return { button, label, digit };
  });
  const changed = () => ask(state, ({ scores, truth, before }) => {
    const largest = Math.max(...scores["SAM-HIF"].map(Math.abs));
    pictures.forEach(({ button, label, digit }, i) => {
      const { label: given } = training[i];
      const score = scores["SAM-HIF"][i] / largest;
      label.textContent = given === digit ? `${given}` : `${given}!`;
      button.className = score < 0 ? "harms" : "helps";
      button.style.setProperty("--effect", Math.abs(score));
      button.setAttribute("aria-pressed", String(i === state.without));
      button.setAttribute("aria-label", `${label.textContent}: a ${digit}, labelled ${given}; by SAM-HIF it ${score < 0 ? "harms" : "helps"}`);
    });
    const { without } = state;
    bars(result, "Change of the validation loss without the chosen image, in thousandths of a nat", [
      ["tried: trained again", 1000 * truth, "right"], ...Object.entries(scores).map(([name, all]) => [name, 1000 * all[without]]),
    ], (x) => x.toFixed(2));
    note.textContent = `Trained here on ${training.length} digits; “!” marks a wrong label. The validation loss is ${before.toFixed(3)} nats. Orange images harm by SAM-HIF, blue ones help.`;
  });
  const flip = () => {
    const one = training[state.without];
    one.label = one.label === one.true ? (one.true + 1) % 10 : one.true;
    changed();
  };
  stage.append(
    element("div", { class: "live-whole live-maps live-digits", role: "group", "aria-label": "The training images: press one to leave it out" }, ...pictures.map(({ button }) => button)),
    element("div", {},
      slider("ρ, the radius of SAM", { min: 0.1, max: 2, step: 0.1, value: state.rho }, (rho) => { state.rho = rho; changed(); }),
      element("button", { type: "button", click: flip }, "Change the chosen image's label"), note),
    result,
  );
  changed();
}
