// An answer about a phantom scan under pressure, and behind the filter that is to hold it.

import { bars, choice, element, fill, notice, pictures, remember, sample, slider, toggle } from "../controls.js";
import { LETTERS, most, probabilities, remark, stem } from "../options.js";
import { scan } from "../worlds.js";

const MODELS = { "scan-vlm-rho90": "90 of 100 cases", "scan-vlm-rho25": "25 of 100 cases" };
const MITIGATIONS = {
  repeat: "the question is repeated", "one-call": "filter, in one call (VIPER)", "two-call": "filter, in two calls",
};
const MOST = 20; // words of a filtered question, as the chapter has it

const featuresOf = remember((model, picture) => model.features(model.picture(picture)));

/** Probabilities of the options at first, under pressure, and after a mitigation; and what the filter wrote.
 *
 * @param {{name: string, picture: object, asked: {question: string, options: string[]}, patterns: string[],
 *   named: number, mitigation: string}} request - `patterns` are what the user says: a remark, an order
 */
export function compute(models, { name, picture, asked, patterns, named, mitigation }) {
  const model = models[name];
  const features = featuresOf(picture.key && name + picture.key, model, picture);
  const words = stem(asked);
  const seen = (text) => ({ ids: model.prompt(text, 1), features });
  const read = (text) => probabilities(model, model.forward(seen(text)), LETTERS);
  const copy = (inputs) => model.tokenizer.decode(model.generate(inputs, MOST)).split(" answer")[0].trim();
  const first = read(`${words} answer`);
  const answer = most(first);
  const said = ["you previously chose X", ...patterns].map((pattern) => `${remark(pattern, named, answer)} ;`).join(" ");
  const filter = `${words} ${said} copy`;
  let [copied, treated] = [null, `${words} ${said} ${words} answer`];
  if (mitigation === "one-call") {
    copied = copy(seen(`viper ; ${filter}`));
    treated = `viper ; ${filter} ${copied} answer`;
  } else if (mitigation === "two-call") { // the filter sees no image
    copied = copy({ ids: model.prompt(`filter ; ${filter}`) });
    treated = `${copied} answer`;
  }
  return { first, said, copied, exact: copied === words, pressed: read(`${words} ${said} answer`), treated: read(treated) };
}

export async function show(stage, ask) {
  const { shown, remarks, order } = await sample("scans");
  const state = {
    scan: 0, question: "modality", noise: 0.25, kind: "authority_based", orders: false, named: 0, mitigation: "one-call", name: "scan-vlm-rho90",
  };
  const [image, first, pressed, treated] = ["div", "div", "div", "div"].map((tag) => element(tag));
  image.className = "live-picture";
  const [question, said, copied] = ["p", "p", "p"].map((tag) => element(tag, { class: "live-said" }));
  const note = notice();
  const changed = () => {
    const { asked: all } = shown[state.scan];
    if (!(state.question in all)) state.question = "modality"; // not every scan has a finding
    const asked = all[state.question];
    const { options, right } = asked;
    fill(kind, Object.keys(all), state.question);
    fill(named, Object.entries(options), state.named);
    const picture = { ...scan(shown[state.scan], state.noise, state.scan), key: `${state.scan} ${state.noise}` };
    pictures(image, [picture], () => "The scan");
    question.textContent = `“${asked.question}?” True is ${options[right]}.`;
    const patterns = [remarks[state.kind], state.orders && order].filter(Boolean);
    named.querySelector("select").disabled = !patterns.some((pattern) => /\bW\b/.test(pattern));
    ask({ ...state, picture, asked, patterns }, (found) => {
      const rows = (p) => p.map((share, i) => [`${LETTERS[i]}: ${options[i]}`, share, i === right && "right"]);
      bars(first, "The model’s first answer", rows(found.first));
      said.textContent = `You say: “${found.said}”`;
      bars(pressed, "After what you say", rows(found.pressed));
      bars(treated, `Then, ${MITIGATIONS[state.mitigation]}`, rows(found.treated));
      copied.textContent = found.copied === null ? "" : `The filter writes: “${found.copied}”${found.exact ? ", which is the question" : ", which is not the question"}.`;
      const [was, is, then] = [found.first, found.pressed, found.treated].map(most);
      note.textContent = `At first ${options[was]}, under pressure ${options[is]}, then ${options[then]}.`;
    });
  };
  const set = (key) => (value) => { state[key] = value; changed(); };
  const kind = choice("Question", Object.keys(shown[0].asked), set("question"), state.question);
  const named = choice("Option", LETTERS, (value) => set("named")(Number(value)));
  const another = () => { state.scan = (state.scan + 1) % shown.length; changed(); };
  stage.append(
    element("div", {}, image, element("button", { type: "button", click: another }, "Another scan"),
      slider("Noise", { min: 0.1, max: 0.4, step: 0.05, value: state.noise }, set("noise")), kind,
      choice("Users in its training were right in", Object.entries(MODELS), set("name"), state.name),
      choice("Then", Object.entries(MITIGATIONS), set("mitigation"), state.mitigation)),
    element("div", {}, question, first,
      element("div", { class: "live-row" },
        choice("You", Object.keys(remarks).map((name) => [name, name.replaceAll("_", " ")]), set("kind"), state.kind),
        named, toggle("and order to change", state.orders, set("orders"))),
      said, pressed, copied, treated, note),
  );
  changed();
}
