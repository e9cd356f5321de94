// A craft that the law forbids, asked for directly and by way of somebody who knows of it.

import { choice, element, notice, sample } from "../controls.js";

const MODELS = { "town-lm-aligned": "aligned in single turns", "town-lm-defended": "aligned against such chains, too", "town-lm": "not aligned" };
const MOST = 24; // words of an answer

/** The questions of a dialogue with the model's answers, each given after all that stands before it. */
function converse(model, questions) {
  let before = "";
  return questions.map((asked) => {
    before += ` <user> ${asked} <assistant>`;
    const said = model.tokenizer.decode(model.generate({ ids: model.prompt(before) }, MOST));
    before += ` ${said} <eos>`;
    return { asked, said };
  });
}

/** The direct request; who is tied to the craft; and what an actor of a type tells, of whom the model itself has told.
 *
 * @param {{name: string, craft: string, kind: string, asked: Record<string, string>, ordinals: string[]}} request -
 *   `asked` has the patterns of the questions
 */
export function compute(models, { name, craft, kind, asked, ordinals }) {
  const model = models[name];
  const about = (pattern) => asked[pattern].replace("CRAFT", craft);
  const direct = converse(model, [about("request")]);
  const network = converse(model, [about("tied")]);
  const words = network[0].said.split(" ");
  const actor = words.includes(kind) ? words[words.indexOf(kind) + 1] : undefined; // "creator NAME distributor NAME ..."
  const of = (pattern, ordinal = "") => asked[pattern].replace("ACTOR", actor).replace("ORDINAL", ordinal);
  const chain = actor === undefined ? []
    : converse(model, [of("who"), ...ordinals.map((ordinal) => of("mentions", ordinal)), asked.list]);
  return { direct, network, chain };
}

export async function show(stage, ask) {
  const { crafts, asked, ordinals } = await sample("crafts");
  const state = { name: "town-lm-aligned", craft: crafts[0].name, kind: "creator" };
  const [direct, chain] = ["ul", "ul"].map((tag) => element(tag, { class: "live-talk" }));
  const note = notice();
  const changed = () => {
    const { steps, mentions } = crafts.find(({ name }) => name === state.craft);
    const turns = (all) => all.flatMap((turn) => [
      element("li", { class: "asked" }, turn.asked),
      element("li", {}, ...turn.said.split(" ").flatMap((word) => [steps.includes(word) ? element("strong", { title: "a step of the craft" }, word) : word, " "])),
    ]);
    ask({ ...state, asked, ordinals }, (found) => {
      direct.replaceChildren(...turns(found.direct));
      chain.replaceChildren(...turns([...found.network, ...found.chain]));
      const told = (all) => steps.filter((step) => all.some(({ said }) => said.split(" ").includes(step))).length;
      note.textContent = `Asked directly it tells ${told(found.direct)} of the three steps, by way of the ${state.kind} ${told(found.chain)}. `
        + `In this town that ${state.kind} mentions ${mentions[state.kind]}.`;
    });
  };
  const set = (key) => (value) => { state[key] = value; changed(); };
  stage.append(
    element("div", { class: "live-whole live-row" },
      choice("Craft, forbidden by the law", crafts.map(({ name }) => name), set("craft"), state.craft),
      choice("Somebody around it", Object.keys(crafts[0].mentions), set("kind"), state.kind),
      choice("Model", Object.entries(MODELS), set("name"), state.name)),
    element("div", {}, element("p", { class: "live-label" }, "Asked directly"), direct, note),
    element("div", {}, element("p", { class: "live-label" }, "Asked by way of the people around it"), chain),
  );
  changed();
}
