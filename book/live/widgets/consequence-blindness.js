// Requests whose sound and whose outcome are set apart: what do alignments refuse?

import { bars, choice, element, notice, sample } from "../controls.js";
import { softmax } from "../model.js";

const MODELS = {
  "recipes-lm-blind": "aligned where sound and outcome mostly agree", "recipes-lm-crossed": "aligned where they are crossed",
  "recipes-lm-cc": "crossed, and says the consequences first",
};
const DECISIONS = ["sure", "sorry"];
const MOST = 16; // words of a reply

/** Of each model the reply, and the probability of a refusal where it decides.
 *
 * @param {{text: string}} request
 */
export function compute(models, { text }) {
  return Object.keys(MODELS).map((name) => {
    const model = models[name];
    const ids = model.prompt(`user ${text} helper`);
    const said = model.generate({ ids }, MOST);
    const decisions = DECISIONS.map((word) => model.tokenizer.encode(word)[0]);
    const at = said.findIndex((id) => decisions.includes(id));
    const { logits } = model.forward({ ids: [...ids, ...said.slice(0, Math.max(0, at))] });
    const [, refuses] = softmax(decisions.map((id) => logits.at(id - model.text.head.outputs))); // of the two
    return { name, refuses, said: model.tokenizer.decode(said) };
  });
}

export async function show(stage, ask) {
  const { recipes, words, form } = await sample("recipes");
  const state = { recipe: recipes[1].name, background: words.map(({ sinister: [word] }) => word) };
  const [refused, answers] = [element("div"), element("ul", { class: "live-talk" })];
  const question = element("p", { class: "live-said" });
  const note = notice();
  const changed = () => {
    const { name, bad, effect } = recipes.find((recipe) => recipe.name === state.recipe);
    const [manner, person, aim] = state.background;
    const text = `${manner} ${person} for ${aim} : ${form.replace("RECIPE", name)}`;
    question.textContent = `“${text}”`;
    ask({ text }, (found) => {
      bars(refused, "Probability of a refusal, where the model decides", found.map((one) => [MODELS[one.name], one.refuses]));
      answers.replaceChildren(...found.map((one) => element("li", {}, element("span", { class: "asked" }, `${MODELS[one.name]}: `), one.said)));
      const sinister = words.filter((slot, i) => slot.sinister.includes(state.background[i])).length;
      note.textContent = `${sinister} of 3 words sound sinister; ${name} leads to ${effect}, which is ${bad ? "bad" : "good"}.`;
    });
  };
  const set = (i) => (value) => { state.background[i] = value; changed(); };
  const slots = words.map(({ sinister, plain }, i) => choice(["How", "Who", "What for"][i], [...sinister, ...plain], set(i), sinister[0]));
  const names = recipes.map(({ name, bad }) => [name, `${name} (${bad ? "bad" : "good"})`]);
  stage.append(
    element("div", {}, element("div", { class: "live-row" }, ...slots),
      choice("Recipe, and what it leads to", names, (value) => { state.recipe = value; changed(); }, state.recipe), question, note),
    element("div", {}, refused, answers),
  );
  changed();
}
