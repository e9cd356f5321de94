// A persona is described; the model answers its questionnaire and its scenarios; one trait is pushed in the state.

import { bars, choice, element, normals, notice, remember, sample, slider } from "../controls.js";
import { dot, mean, minus, norm, plus, pushed, reader, states, times } from "../steering.js";

const MODELS = { "persona-lm": "traits change abilities", "persona-lm-no-effect": "no trait changes an ability" };

/** As long as the contrast texts' states spread along it: the unit vector from one pole's mean state to the other's. */
const vector = remember((model, { words, contrast }, layer) => {
  const [minusEnds, plusEnds] = words.map((pole) => pole.flatMap((word) => contrast.map((item) => states(model, `${word} ${item}`)[layer].at(-1))));
  const between = minus(mean(plusEnds), mean(minusEnds));
  const u = times(1 / norm(between), between);
  const along = [...minusEnds, ...plusEnds].map((h) => dot(u, h));
  const middle = along.reduce((a, b) => a + b, 0) / along.length;
  return times(Math.sqrt(along.reduce((sum, x) => sum + (x - middle) ** 2, 0) / (along.length - 1)), u);
});

const readers = remember((model, head, groups) => groups.map((questions) => questions.map(({ question }) => reader(model, [...head, question].join(" ")))));

/** Of each dimension and ability the mean share of answer 1 among the two: as it is, with the vector, with a random one.
 *
 * @param {{name: string, head: string[], dimensions: object[], abilities: object[], trait: number, layer: number,
 *   alpha: number, seed: number}} request - `head` has the words that describe the persona
 */
export function compute(models, { name, head, dimensions, abilities, trait, layer, alpha, seed }) {
  const model = models[name];
  const v = times(alpha, vector([name, trait, layer].join(), model, dimensions[trait], layer));
  const drawn = v.map(normals(seed));
  const ways = { plain: [], vector: [pushed(layer, () => v)], random: [pushed(layer, () => times(norm(v) / norm(drawn), drawn))] };
  const groups = [...dimensions.map(({ items }) => items), ...abilities.map(({ scenarios }) => scenarios)];
  const read = readers([name, ...head].join(), model, head, groups);
  const shares = (hooks) => groups.map((questions, group) => {
    const each = questions.map(({ answers }, i) => {
      const p = read[group][i](hooks);
      const [no, yes] = answers.map((word) => p[model.tokenizer.encode(word)[0]]);
      return yes / (no + yes);
    });
    return each.reduce((a, b) => a + b, 0) / each.length;
  });
  return Object.fromEntries(Object.entries(ways).map(([way, hooks]) => [way, shares(hooks)]));
}

export async function show(stage, ask) {
  const { dimensions, abilities, places, effects } = await sample("personas");
  const state = { name: "persona-lm", trait: 0, layer: 1, alpha: 0, seed: 1 };
  const head = ["", ...dimensions.map(() => "")]; // a word of the home, and one of each dimension
  const [traits, safe] = [element("div"), element("div")];
  const text = element("p", { class: "live-said" });
  const note = notice();
  const changed = () => {
    const said = head.filter(Boolean);
    text.textContent = said.length ? `“${said.join(" ")} …”` : "Nobody is described.";
    ask({ ...state, head: said, dimensions, abilities }, (found) => {
      const rows = (names, first, ways) => names.flatMap((row, i) => Object.entries(ways).map(([way, words]) => [`${row}${words}`, found[way][first + i]]));
      const pushedToo = state.alpha !== 0;
      bars(traits, "Share of items that are answered from the first pole", rows(dimensions.map(({ name }) => `${name[0]}, not ${name[1]}`), 0,
        pushedToo ? { plain: "", vector: " + vector" } : { plain: "" }));
      bars(safe, "Share of scenarios with the safe answer", rows(abilities.map(({ name }) => name), dimensions.length,
        pushedToo ? { plain: "", vector: " + vector", random: " + random" } : { plain: "" }));
      const truth = state.name === "persona-lm" ? effects.map((of) => of[state.trait]) : effects.map(() => 0);
      const changes = abilities.map(({ name }, i) => `${name} ${Math.round(100 * truth[i])}`).join(", ");
      note.textContent = `In this network’s world, ${dimensions[state.trait].name[0]} in place of ${dimensions[state.trait].name[1]} changes, in points: ${changes}.`;
    });
  };
  const set = (key, as = Number) => (value) => { state[key] = as(value); changed(); };
  const describe = (i) => (value) => { head[i] = value; changed(); };
  const described = dimensions.map(({ name, words: [no, yes] }, i) => choice(name, [["", "–"], yes[0], no[0]], describe(i + 1), ""));
  stage.append(
    element("div", {},
      choice("Network", Object.entries(MODELS), set("name", String), state.name),
      element("div", { class: "live-row" }, choice("Home", [["", "–"], ...places.map(([word]) => word)], describe(0), ""), ...described), text, traits),
    element("div", {},
      element("div", { class: "live-row" },
        choice("Push along the trait", dimensions.map(({ name }, i) => [i, name]), set("trait"), 0),
        choice("behind block", ["0", "1", "2"], set("layer"), "1")),
      slider("Strength α", { min: -4, max: 4, step: 0.5, value: 0, say: (x) => x.toFixed(1) }, set("alpha")),
      element("button", { type: "button", click: () => set("seed")(state.seed + 1) }, "Another random direction"), note, safe),
  );
  changed();
}
