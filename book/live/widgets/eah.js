// One head's attention copied to all heads of its layer, while a caption is written.

import { choice, element, heat, notice, slider } from "../controls.js";
import { capture, edit } from "../hooks.js";
import { caption, describe, draw, editor, loadDigits, said, scene } from "../scene.js";

const KAPPA = 0.84; // threshold of a sink, in units of what uniform attention gives: the chapter's

/** c_y: the mean attention that later tokens pay to each image column, for one head's pattern [n, n]. */
function strengths(pattern, n, first, count) {
  return Array.from({ length: count }, (_, i) => {
    const column = first + i;
    let sum = 0;
    for (let row = column + 1; row < n; row++) sum += pattern[row * n + column];
    return sum / (n - 1 - column);
  });
}

/** The same for a head that attends evenly to all that it may see. */
function uniform(n, first, count) {
  const rows = new Float64Array(n * n);
  for (let row = 0; row < n; row++) rows.fill(1 / (row + 1), row * n, row * n + row + 1);
  return strengths(rows, n, first, count);
}

const mean = (values) => values.reduce((sum, x) => sum + x, 0) / values.length;

/** The heads of a layer as they look at the image, and captions without and with the copy. */
export function compute({ "scenes-vlm": model }, { picture, layer, source }) {
  const { ids, features, before } = describe(picture.key, model, picture);
  const [n, first, count] = [ids.length, ids.indexOf(model.imageToken), model.nPatches];
  const patterns = capture("pattern", { layers: [layer] });
  model.forward({ ids, features }, [patterns]);
  const { nHeads } = model.text.tower;
  const beta = KAPPA * mean(uniform(n, first, count));
  const heads = Array.from({ length: nHeads }, (_, head) => {
    const columns = strengths(patterns.acts[layer].data.subarray(head * n * n, (head + 1) * n * n), n, first, count);
    return { columns, sinks: columns.filter((c) => c > beta).length };
  });
  const dense = heads.reduce((best, { sinks }, head) => (sinks > heads[best].sinks ? head : best), 0);
  const chosen = source === "dense" ? dense : source;
  const broadcast = edit("pattern", (pattern, { shape: [, nQueries, nKeys] }) => {
    const size = nQueries * nKeys;
    const map = pattern.slice(chosen * size, (chosen + 1) * size);
    for (let head = 0; head < nHeads; head++) pattern.set(map, head * size);
  }, { layers: [layer] });
  const after = chosen === null ? null : model.tokenizer.decode(model.generate({ ids, features }, 16, [broadcast]));
  return { heads, chosen, dense, before, after };
}

export async function show(stage, ask) {
  const digits = await loadDigits();
  const state = { layer: 1, source: "dense", noise: 0.4 };
  const cells = scene("b1 red star, d2 green disc, a3 cyan moon, c4 yellow two");
  const [before, after] = ["p", "p"].map((tag) => element(tag, { class: "live-said" }));
  const [maps, note] = [element("div", { class: "live-maps" }), notice()];
  const changed = () => {
    const picture = draw(cells, digits, { cellNoise: state.noise, seed: 7 });
    scenery.show(picture);
    ask({ picture, layer: state.layer, source: state.source }, (result) => {
      const largest = Math.max(...result.heads.flatMap(({ columns }) => columns));
      maps.replaceChildren(...result.heads.map(({ columns, sinks }, head) => element("button", {
        type: "button", "aria-pressed": String(head === result.chosen),
        "aria-label": `${head}: ${sinks} sinks${head === result.dense ? ", the most" : ""}; copy this head`,
        click: () => { state.source = state.source === head ? null : head; changed(); },
      }, heat(columns.map((c) => c / largest), 8, `Attention of head ${head} to the 64 image tokens`), `${head}: ${sinks} sinks`)));
      before.replaceChildren("As it is: ", ...said(result.before, cells));
      if (result.after === null) after.textContent = "Press a head to copy its attention to the others.";
      else after.replaceChildren(`Head ${result.chosen} for all: `, ...said(result.after, cells));
      const [was, is] = [caption(result.before, cells), caption(result.after ?? result.before, cells)];
      note.textContent = `Objects found: ${was.found} before, ${is.found} after, of ${is.there}. Not in the scene: ${was.wrong} before, ${is.wrong} after.`;
    });
  };
  const scenery = editor(cells, changed);
  stage.append(scenery.element, element("div", {},
    slider("Noise on the objects", { min: 0, max: 1.6, step: 0.1, value: state.noise }, (value) => { state.noise = value; changed(); }),
    element("div", { class: "live-row" },
      choice("Layer", ["0", "1", "2", "3", "4", "5"], (value) => { state.layer = Number(value); changed(); }, "1"),
      element("button", { type: "button", click: () => { state.source = "dense"; changed(); } }, "Head with most sinks")),
    before, after, note), element("div", { class: "live-whole" }, maps));
  changed();
}
