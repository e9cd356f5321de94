// Harsanyi interactions of a digit's patches: what patches do together that no smaller group of them does.

import { bars, choice, element, notice, paint } from "../controls.js";
import { loadDigits } from "../scene.js";

const MOST = 8; // patches: 2^8 passes

/** log p / (1 - p) of a class. */
function logOdds(logits, label) {
  const others = [...logits].filter((_, digit) => digit !== label);
  const max = Math.max(...others);
  return logits[label] - max - Math.log(others.reduce((sum, x) => sum + Math.exp(x - max), 0));
}

const order = (mask) => mask.toString(2).replaceAll("0", "").length;

/** I(S) of every subset S of the players, from the log-odds of the predicted class on all masked images.
 *
 * @param {{image: number[], players: number[]}} request - 64 grey values; patches in reading order, 2 x 2 pixels each
 */
export function compute({ "digits-vit": model }, { image, players }) {
  const show = (mask) => {
    const data = new Uint8ClampedArray(4 * 64);
    for (let at = 0; at < 64; at++) {
      const player = players.indexOf(4 * (at >> 4) + ((at & 7) >> 1));
      const grey = player < 0 || (mask >> player) & 1 ? image[at] : 0; // the baseline is paper
      data.set([grey, grey, grey, 255], 4 * at);
    }
    return model.forward({ image: model.picture({ data, width: 8, height: 8 }) }).logits;
  };
  const n = 2 ** players.length;
  const whole = show(n - 1);
  const label = whole.indexOf(Math.max(...whole));
  const effects = Float64Array.from({ length: n }, (_, mask) => logOdds(mask === n - 1 ? whole : show(mask), label));
  const [empty, full] = [effects[0], effects[n - 1]];
  // The Moebius transform: for each player, subtract the half without it from the half with it.
  for (let bit = 1; bit < n; bit *= 2) for (let mask = 0; mask < n; mask++) if (mask & bit) effects[mask] -= effects[mask ^ bit];
  return { label, empty, full, effects: [...effects] };
}

export async function show(stage, ask) {
  const digits = await loadDigits();
  const state = { digit: 3, which: 0, players: [1, 2, 5, 6, 9, 10] };
  const canvas = element("canvas", { "aria-hidden": "true" });
  const [orders, strongest, note] = [element("div"), element("div"), notice()];
  const name = (patch) => `${"abcd"[patch % 4]}${1 + Math.floor(patch / 4)}`;
  const buttons = Array.from({ length: 16 }, (_, patch) => element("button", {
    type: "button", title: name(patch), "aria-label": `Patch ${name(patch)} is a variable`, "aria-pressed": String(state.players.includes(patch)),
    click: () => {
      if (state.players.includes(patch)) state.players = state.players.filter((other) => other !== patch);
      else if (state.players.length < MOST) state.players = [...state.players, patch].sort((a, b) => a - b);
      else { note.textContent = `At most ${MOST} patches: release one first.`; return; }
      buttons[patch].setAttribute("aria-pressed", String(state.players.includes(patch)));
      changed();
    },
  }));
  const changed = () => {
    const image = digits[state.digit][state.which];
    const { players } = state;
    paint(canvas, image, 8);
    ask({ image, players }, ({ label, empty, full, effects }) => {
      const sums = Array.from({ length: players.length }, () => 0);
      effects.forEach((effect, mask) => { if (mask) sums[order(mask) - 1] += Math.abs(effect); });
      bars(orders, "Strength of interactions by their order, the number of patches: sum of |I|",
        sums.map((sum, i) => [`${i + 1}`, sum]), (x) => x.toFixed(1));
      const ranked = [...effects.keys()].slice(1).sort((a, b) => Math.abs(effects[b]) - Math.abs(effects[a])).slice(0, 6);
      bars(strongest, "The strongest interactions",
        ranked.map((mask) => [players.filter((_, i) => (mask >> i) & 1).map(name).join(" "), effects[mask]]), (x) => x.toFixed(1));
      note.textContent = `The network says ${label}. Its log-odds are ${full.toFixed(1)} with all patches and ${empty.toFixed(1)} without the chosen ones; the ${effects.length - 1} interactions add up to the difference.`;
    });
  };
  const set = (key) => (value) => { state[key] = Number(value); changed(); };
  stage.append(
    element("div", {},
      element("div", { class: "live-row" },
        choice("Digit", [...digits.keys()].map(String), set("digit"), String(state.digit)),
        choice("Handwriting", digits[0].map((_, i) => [String(i), `${i + 1}`]), set("which"), "0")),
      element("div", { class: "live-grid live-patches", role: "group", "aria-label": "Patches of the digit; pressed ones are variables" }, canvas, ...buttons)),
    element("div", {}, note, orders, strongest),
  );
  changed();
}
