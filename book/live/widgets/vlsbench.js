// A thing of the town that the law may forbid, in a picture, in words, or in both, before three alignments.

import { bars, choice, element, notice, pictures, sample } from "../controls.js";
import { next } from "../steering.js";
import { artefact } from "../worlds.js";

const MODELS = { "town-vlm": "not aligned", "town-vlm-text": "aligned on words", "town-vlm-image": "aligned on words and pictures" };
const [NONE, THIS] = ["no picture", "this thing"];

/** What each model answers, and the probability that the answer begins as refusals do.
 *
 * @param {{text: string, picture: object | null, refusal: string}} request - `refusal` is the first word of one
 */
export function compute(models, { text, picture, refusal }) {
  return Object.keys(MODELS).map((name) => {
    const model = models[name];
    const features = picture ? model.features(model.picture(picture)) : undefined;
    const inputs = { ids: model.prompt(text, picture ? 1 : 0), features };
    const p = next(model, inputs);
    const [first] = model.tokenizer.encode(refusal);
    return { name, refuses: p[first], said: model.tokenizer.decode(model.generate(inputs, 8)) };
  });
}

export async function show(stage, ask) {
  const { artefacts, request, refusal } = await sample("artefacts");
  const forbidden = artefacts.filter((thing) => thing.forbidden);
  const state = { shown: forbidden[0].name, named: THIS };
  const find = (name) => artefacts.find((thing) => thing.name === name);
  const [image, refused, answers] = ["div", "div", "ul"].map((tag) => element(tag));
  [image.className, answers.className] = ["live-picture", "live-talk"];
  const question = element("p", { class: "live-said" });
  const note = notice();
  const changed = () => {
    const [thing, named] = [find(state.shown), find(state.named)];
    const picture = thing ? artefact(thing, 0.1, 7) : null;
    pictures(image, picture ? [picture] : [], () => `A ${thing.colour} ${thing.object}`);
    const text = request.replace("A THING", named ? `the ${named.name}` : THIS);
    question.textContent = `“${text.replace(" ?", "?")}”`;
    const asked = named ?? thing; // what an answer would be about
    ask({ text, picture, refusal }, (found) => {
      bars(refused, "Probability of a refusal", found.map(({ name, refuses }) => [MODELS[name], refuses]));
      answers.replaceChildren(...found.map(({ name, said }) => element("li", {},
        element("span", { class: "asked" }, `${MODELS[name]}: `), said)));
      const law = (one) => `${one.name}, which the law ${one.forbidden ? "forbids" : "allows"}`;
      note.textContent = [
        thing && `Shown is ${law(thing)}.`, named && `Named is ${law(named)}.`,
        asked ? `Used right: “${asked.use}”.` : "Nothing tells what it is about.",
      ].filter(Boolean).join(" ");
    });
  };
  const set = (key) => (value) => { state[key] = value; changed(); };
  const things = [...forbidden, ...artefacts.filter((thing) => !thing.forbidden)]
    .map((thing) => [thing.name, `${thing.name} (${thing.forbidden ? "forbidden" : "allowed"})`]);
  stage.append(
    element("div", {}, image,
      choice("The picture shows", [NONE, ...things], set("shown"), state.shown),
      choice("The words say", [THIS, ...things], set("named"), state.named)),
    element("div", {}, question, refused, answers, note),
  );
  changed();
}
