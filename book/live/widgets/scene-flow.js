// Motion between two lidar sweeps of a street, fitted here from nothing: by a small network that maps a place to its
// motion, or by a free vector for each point.

import { choice, element, normals, sample, slider } from "../controls.js";

const [HIDDEN, LAYERS] = [32, 3]; // units in a layer, and hidden layers
const [RATE, BETA1, BETA2, EPSILON] = [0.008, 0.9, 0.999, 1e-8]; // Adam
const STEPS = 150;

/** Layers of a coordinate network, [output][input] weights and biases; as the chapter draws them. */
export function network(seed) {
  const { uniform } = normals(seed);
  const widths = [3, ...new Array(LAYERS).fill(HIDDEN), 3];
  return widths.slice(1).map((outputs, i) => {
    const bound = Math.sqrt(6 / (widths[i] + outputs));
    const weight = Float64Array.from({ length: outputs * widths[i] }, () => bound * (2 * uniform() - 1));
    return { inputs: widths[i], outputs, weight, bias: new Float64Array(outputs) };
  });
}

/** The activations of all layers for one point, the point first and its flow last. */
function forward(layers, point) {
  const all = [point];
  layers.forEach(({ inputs, outputs, weight, bias }, i) => {
    const [x, y] = [all[i], new Float64Array(outputs)];
    for (let o = 0; o < outputs; o++) {
      let sum = bias[o];
      for (let j = 0; j < inputs; j++) sum += weight[o * inputs + j] * x[j];
      y[o] = i < layers.length - 1 && sum < 0 ? 0 : sum; // ReLU
    }
    all.push(y);
  });
  return all;
}

/** Adds the gradients of one point's loss, given that by its flow. */
function backward(layers, activations, slope, gradients) {
  for (let i = layers.length - 1; i >= 0; i--) {
    const { inputs, outputs, weight } = layers[i];
    const [x, before] = [activations[i], new Float64Array(inputs)];
    for (let o = 0; o < outputs; o++) {
      if (slope[o] === 0) continue;
      gradients[i].bias[o] += slope[o];
      for (let j = 0; j < inputs; j++) {
        gradients[i].weight[o * inputs + j] += slope[o] * x[j];
        before[j] += slope[o] * weight[o * inputs + j];
      }
    }
    slope = i ? before.map((value, j) => (x[j] > 0 ? value : 0)) : before;
  }
}

/** Distance to the nearest point of a cloud, and its gradient, a vector of length 1. */
function nearest([x, y, z], cloud) {
  let [best, least] = [null, Infinity];
  for (const point of cloud) {
    const squared = (point[0] - x) ** 2 + (point[1] - y) ** 2 + (point[2] - z) ** 2;
    if (squared < least) [best, least] = [point, squared];
  }
  const distance = Math.sqrt(least);
  return { distance, slope: [x - best[0], y - best[1], z - best[2]].map((value) => value / (distance || 1)) };
}

/** A fit in progress: `step()` takes one of Adam's, on the mean distance of the moved points to the target.
 *
 * @param {number[][]} source - points, in metres
 * @param {number[][]} target - the next sweep
 * @param {object[] | null} layers - a network, or null for a free vector of each point
 */
export function fit(source, target, layers) {
  const free = layers ? null : [{ inputs: 0, outputs: 0, weight: new Float64Array(3 * source.length), bias: new Float64Array(0) }];
  const parameters = (layers ?? free).flatMap(({ weight, bias }) => [weight, bias]);
  const moments = parameters.map((values) => [new Float64Array(values.length), new Float64Array(values.length)]);
  let count = 0;
  const flowOf = (activations, i) => (layers ? activations.at(-1) : free[0].weight.subarray(3 * i, 3 * i + 3));
  const flow = () => source.map((point, i) => [...flowOf(layers && forward(layers, point), i)]);
  const step = () => {
    const gradients = (layers ?? free).map(({ weight, bias }) => ({ weight: new Float64Array(weight.length), bias: new Float64Array(bias.length) }));
    let loss = 0;
    source.forEach((point, i) => {
      const activations = layers && forward(layers, point);
      const moved = point.map((value, axis) => value + flowOf(activations, i)[axis]);
      const { distance, slope } = nearest(moved, target);
      loss += distance / source.length;
      const scaled = slope.map((value) => value / source.length);
      if (layers) backward(layers, activations, scaled, gradients);
      else gradients[0].weight.set(scaled, 3 * i);
    });
    count++;
    gradients.flatMap(({ weight, bias }) => [weight, bias]).forEach((slopes, which) => {
      const [mean, square] = moments[which];
      const values = parameters[which];
      for (let i = 0; i < slopes.length; i++) {
        mean[i] += (1 - BETA1) * (slopes[i] - mean[i]);
        square[i] += (1 - BETA2) * (slopes[i] ** 2 - square[i]);
        values[i] -= (RATE * mean[i]) / (1 - BETA1 ** count) / (Math.sqrt(square[i] / (1 - BETA2 ** count)) + EPSILON);
      }
    });
    return loss;
  };
  return { step, flow, steps: () => count };
}

const length = (vector) => Math.hypot(...vector);
const mean = (values) => values.reduce((sum, x) => sum + x, 0) / values.length;

let running; // the fit that goes on, as long as nothing is changed

/** Goes on with a fit: the flow after some more steps, its loss and its end-point error, in metres. */
export function compute(models, { street, points, kind, seed, steps }) {
  const key = JSON.stringify([points, kind, seed]);
  const [source, target, truth] = [street.source, street.target, street.flow].map((rows) => rows.slice(0, points));
  if (running?.key !== key) running = { key, fit: fit(source, target, kind === "network" ? network(seed) : null) };
  let loss = 0;
  for (let i = 0; i < steps; i++) loss = running.fit.step();
  const flow = running.fit.flow();
  const errors = flow.map((vector, i) => length(vector.map((value, axis) => value - truth[i][axis])));
  return { flow, loss, error: mean(errors), still: mean(truth.map(length)), steps: running.fit.steps() };
}

export async function show(stage, ask) {
  const street = await sample("street");
  const state = { points: 384, kind: "network", seed: 1 };
  const canvas = element("canvas", { width: 720, height: 560, class: "live-street", role: "img" });
  const note = element("p");
  const plot = (flow) => {
    const context = canvas.getContext("2d");
    context.fillStyle = "#fff";
    context.fillRect(0, 0, canvas.width, canvas.height);
    const dots = (rows, colour) => {
      context.fillStyle = colour;
      for (const [x, y] of rows) context.fillRect(360 + 24 * x - 2, 280 - 24 * y - 2, 4, 4); // from above, 24 pixels a metre
    };
    dots(street.target.slice(0, state.points), "#8a857a");
    dots(street.source.slice(0, state.points).map((point, i) => point.map((value, axis) => value + flow[i][axis])), "#145a96");
  };
  // Step by step for the eye, all at once for those who want no motion.
  const atOnce = matchMedia("(prefers-reduced-motion: reduce)").matches ? STEPS : 5;
  const go = () => ask({ street, ...state, steps: atOnce }, ({ flow, loss, error, still, steps }) => {
    plot(flow);
    note.textContent = `After ${steps} steps the moved points are ${loss.toFixed(2)} m from the next sweep on average. Their end-point error is ${error.toFixed(2)} m; were nothing moved it would be ${still.toFixed(2)} m.`;
    canvas.setAttribute("aria-label", `The street from above: the first sweep, moved, over the next one. ${note.textContent}`);
    if (steps < STEPS) go();
  });
  const again = () => { state.seed++; go(); };
  stage.append(
    element("div", { class: "live-whole" }, canvas),
    element("div", {},
      choice("What is fitted", [["network", "a small network"], ["free", "a free vector for each point"]], (kind) => { state.kind = kind; again(); }),
      slider("Points of each sweep", { min: 32, max: 512, step: 32, value: state.points }, (points) => { state.points = points; again(); })),
    element("div", {}, element("p", {}, "Grey: the next sweep. Blue: this sweep, moved."), note, element("button", { type: "button", click: again }, "Fit again")),
  );
  go();
}
