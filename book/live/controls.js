// What widgets are made of: elements, choices, sliders, switches, bars. All can be reached by the keyboard.

/** An element with attributes (functions are listeners) and content. */
export function element(tag, attributes = {}, ...content) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name, value);
    else if (value === true || value === false) made.toggleAttribute(name, value);
    else made.setAttribute(name, value);
  }
  made.append(...content);
  return made;
}

const labelled = (label, control) => element("label", {}, label, control);

/** A choice among words; `options` are words, or pairs of value and word. */
export function choice(label, options, change, value) {
  const select = element("select", { change: () => change(select.value) });
  const made = labelled(label, select);
  fill(made, options, value);
  return made;
}

/** Gives a choice other options, and chooses one. */
export function fill(made, options, value) {
  const pairs = options.map((option) => [option].flat()).map(([of, word = of]) => [of, word]);
  const select = made.querySelector("select");
  select.replaceChildren(...pairs.map(([of, word]) => element("option", { value: of }, word)));
  if (value !== undefined) select.value = value;
}

/** A slider that says its number. */
export function slider(label, { min, max, step = 1, value, say = String }, change) {
  const said = element("output", {}, say(value));
  const input = element("input", {
    type: "range", min, max, step, value,
    input: () => { said.textContent = say(Number(input.value)); change(Number(input.value)); },
  });
  return element("div", { class: "live-slider" }, labelled(label, input), said);
}

/** A line of text; it counts from the first pause in typing. */
export function line(label, value, change) {
  let timer;
  const later = () => { clearTimeout(timer); timer = setTimeout(() => change(input.value), 150); };
  const input = element("input", { type: "text", value, autocomplete: "off", spellcheck: "false", input: later });
  return Object.assign(element("label", { class: "live-line" }, label, input), { input });
}

/** A button that is on or off. */
export function toggle(text, on, change, label = text) {
  const button = element("button", {
    type: "button", class: "live-toggle", "aria-pressed": String(on), "aria-label": label,
    click: () => {
      const now = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(now));
      change(now);
    },
  }, text);
  return button;
}

/** A group of controls with a name. */
export function group(label, ...content) {
  return element("div", { class: "live-group", role: "group", "aria-label": label }, element("p", { class: "live-label" }, label), ...content);
}

const percent = (p) => `${(100 * p).toFixed(p > 0.0995 ? 0 : 1)} %`;

/** Bars for rows of [word, share, mark?]; they replace what stands in `box`. */
export function bars(box, caption, rows, say = percent) {
  const largest = Math.max(1e-9, ...rows.map(([, share]) => Math.abs(share)), say === percent ? 1 : 0);
  const body = rows.map(([word, share, mark]) => element(
    "tr", mark ? { class: mark } : {},
    element("th", { scope: "row" }, word),
    element("td", {}, element("span", { class: `live-bar${share < 0 ? " less" : ""}`, style: `--share:${Math.abs(share) / largest}` })),
    element("td", {}, say(share)),
  ));
  const long = rows.some(([word]) => word.length > 16) ? " long" : "";
  box.replaceChildren(element("table", { class: `live-bars${long}` }, element("caption", {}, caption), element("tbody", {}, ...body)));
}

/** The most probable words and their probabilities. */
export function top(probabilities, words, n) {
  const ranked = [...probabilities.keys()].sort((a, b) => probabilities[b] - probabilities[a]);
  return ranked.slice(0, n).map((id) => [words[id], probabilities[id]]);
}

/** A sentence that is read out when it changes. */
export const notice = () => element("p", { "aria-live": "polite" });

/** Numbers from 0 to 1 as shades of a canvas, `side` x `side`. */
export function heat(values, side, label) {
  const canvas = element("canvas", { width: side, height: side, class: "live-heat", role: "img", "aria-label": label });
  const context = canvas.getContext("2d");
  const picture = context.createImageData(side, side);
  values.forEach((value, i) => {
    const v = Math.max(0, Math.min(1, value));
    // From dark blue over red to pale yellow, the same in light and dark.
    picture.data.set([255 * Math.min(1, 1.6 * v), 255 * v ** 1.8, 255 * (0.25 + 0.35 * Math.sin(Math.PI * v)), 255], 4 * i);
  });
  context.putImageData(picture, 0, 0);
  return canvas;
}

/** Handwriting on a canvas of `side` x `side` pixels: ink from 0 to 255, on white paper. */
export function paint(canvas, ink, side) {
  Object.assign(canvas, { width: side, height: side });
  const data = Uint8ClampedArray.from({ length: 4 * side * side }, (_, at) => (at % 4 === 3 ? 255 : 255 - ink[at >> 2]));
  canvas.getContext("2d").putImageData(new ImageData(data, side, side), 0, 0);
}

/** Examples of a world, which the site has in a file. */
export async function sample(name) {
  const response = await fetch(new URL(`${name}.json`, import.meta.url));
  if (!response.ok) throw new Error(`the file ${name}.json is not there`);
  return response.json();
}

/** Pictures on canvases, one an element, side by side. */
export function pictures(box, shown, label) {
  box.replaceChildren(...shown.map(({ data, width, height }, i) => {
    const canvas = element("canvas", { width, height, role: "img", "aria-label": label(i) });
    canvas.getContext("2d").putImageData(new ImageData(data, width, height), 0, 0);
    return canvas;
  }));
}

/** A function that computes anew only for another key; without a key, always. */
export function remember(make) {
  let last;
  return (key, ...args) => {
    if (key === undefined || last?.key !== key) last = { key, value: make(...args) };
    return last.value;
  };
}

/** Normal random numbers, the same for the same seed (mulberry32, Box and Muller). */
export function normals(seed) {
  let state = seed >>> 0;
  const uniform = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
  return Object.assign(() => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform()), { uniform });
}
