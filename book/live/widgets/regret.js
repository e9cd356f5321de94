// Two speakers, a record, and the next word of each: regret, or standing by what it said?

import { bars, choice, element, normals, notice, remember, sample } from "../controls.js";
import { dot, mean, minus, norm, plus, pushed, reader, states, times } from "../steering.js";

/** Probabilities of regret words and of standing by. */
const sums = (model, p, words) => ["regret", "stand"].map((kind) => words[kind].reduce((sum, word) => sum + p[model.tokenizer.encode(word)[0]], 0));

/** For each block the unit vector from the mean state in front of standing by to that of regret, and where the two are along it. */
const directions = remember((model, episodes, words) => {
  const regrets = episodes.map((text) => words.regret.includes(model.tokenizer.decode(model.generate({ ids: model.prompt(text) }, 1))));
  const ends = episodes.map((text) => states(model, text).map((tokens) => tokens.at(-1)));
  return ends[0].map((_, layer) => {
    const [regret, stand] = [true, false].map((kind) => mean(ends.map((of) => of[layer]).filter((_, i) => regrets[i] === kind)));
    const between = minus(regret, stand);
    const u = times(1 / norm(between), between);
    return { u, regret: dot(u, regret), stand: dot(u, stand) };
  });
});

/** What each speaker would say next; the helper's state at "i" along the directions; and its next word when that is set.
 *
 * @param {{episodes: string[], words: object, turns: {helper: string, other: string}, layer: number, target: string,
 *   seed: number}} request - `turns` are documents up to "i"; `target` is regret, stand or "", which leaves all as it is
 */
export function compute({ "regret-lm": model }, { episodes, words, turns, layer, target, seed }) {
  const of = directions("", model, episodes, words);
  const [helper, other] = [turns.helper, turns.other].map((text) => reader(model, text));
  const { u, [target]: value } = of[layer];
  const v = u.map(normals(seed));
  const distance = (h) => (target ? value - dot(u, h) : 0);
  const set = [pushed(layer, (h) => times(distance(h), u))];
  const random = [pushed(layer, (h) => times(distance(h) / norm(v), v))];
  const next = (read, hooks) => sums(model, read(hooks), words);
  const coordinates = states(model, turns.helper).map((tokens, i) => (dot(of[i].u, tokens.at(-1)) - of[i].stand) / (of[i].regret - of[i].stand));
  return { helper: next(helper), other: next(other), set: next(helper, set), random: next(helper, random), coordinates };
}

export async function show(stage, ask) {
  const { episodes, told, record, doubt, values, name, ...words } = await sample("regrets");
  const state = { helper: values[1], other: values[0], shown: values[0], layer: 4, target: "", seed: 1 };
  const [next, blocks, changedBy] = ["div", "div", "div"].map((tag) => element(tag));
  const text = element("p", { class: "live-said" });
  const note = notice();
  const changed = () => {
    const { helper, other, shown, layer, target, seed } = state;
    const document = `${told.replaceAll("VALUE", helper).replace("OTHER", other)} ${shown ? record.replace("VALUE", shown) : doubt}`;
    text.textContent = `“${document}”`;
    const turns = { helper: `${document} helper i`, other: `${document} ${name} i` };
    ask({ episodes, words, turns, layer: Number(layer), target, seed }, (found) => {
      const rows = ["helper", "other"].flatMap((who) => ["regrets", "stands by it"].map((does, i) => [`${who === "other" ? name : who} ${does}`, found[who][i]]));
      bars(next, `Next word behind “helper i”, and behind “${name} i”`, rows);
      bars(blocks, "Helper’s state at “i” along the mean difference behind each block: 0 as where it stands by its answer, 1 as where it regrets (cut at −1 and 2)",
        found.coordinates.map((x, i) => [`block ${i}`, Math.max(-1, Math.min(2, x))]), (x) => x.toFixed(2));
      bars(changedBy, "Probability that the helper regrets", [["as it is", found.helper[0]], ["set along the direction", found.set[0]], ["moved as far at random", found.random[0]]]);
      const wrong = [["helper", helper], [name, other]].filter(([, value]) => shown && value !== shown).map(([who]) => who);
      note.textContent = wrong.length === 1 ? `The record contradicts only ${wrong}. Look whether the model knows who said what.`
        : `${wrong.length ? "The record contradicts both speakers" : "Nobody is contradicted"}.`;
    });
  };
  const set = (key) => (value) => { state[key] = value; changed(); };
  const another = () => set("seed")(state.seed + 1);
  stage.append(
    element("div", {},
      element("div", { class: "live-row" },
        choice("The note tells the helper", values, set("helper"), state.helper), choice(`${name} says`, values, set("other"), state.other),
        choice("The record says", [...values, ["", "nothing: the user doubts"]], set("shown"), state.shown)),
      text, note, next),
    element("div", {}, blocks,
      element("div", { class: "live-row" },
        choice("Set the helper’s state", [["", "leave it"], ["stand", "as where it stands by it"], ["regret", "as where it regrets"]], set("target"), ""),
        choice("behind block", Array.from({ length: 6 }, (_, i) => String(i)), set("layer"), state.layer)),
      changedBy, element("button", { type: "button", click: another }, "Another random direction")),
  );
  changed();
}
