// A picture and a sentence that disagree about a colour, each more or less sure.

import { bars, choice, element, notice, slider } from "../controls.js";
import { next } from "../steering.js";
import { COLOURS, OBJECTS, draw, editor, loadDigits, scene } from "../scene.js";

const entropy = (p) => p.reduce((sum, x) => (x > 0 ? sum - x * Math.log(x) : sum), 0);

/** Probabilities of the colours and entropies, for the picture alone, the sentence alone, and both. */
export function compute({ "conflict-vlm-clear-look": model }, { picture, sentence, question }) {
  const colours = Object.keys(COLOURS).map((word) => model.tokenizer.encode(word)[0]);
  const features = model.features(model.picture(picture));
  const after = (text, images) => {
    const p = next(model, { ids: model.prompt(text, images), features });
    return { colours: colours.map((id) => p[id]), entropy: entropy(p) }; // the entropy of all words
  };
  return { vision: after(question, 1), text: after(`${sentence} ${question}`, 0), both: after(`${sentence} ${question}`, 1) };
}

export async function show(stage, ask) {
  const digits = await loadDigits();
  const state = { object: "star", told: "red", adverb: "probably", noise: 0.3 };
  const cells = scene("b2 blue star, d3 green moon");
  const [words, result, note] = [element("p", { class: "live-said" }), element("div"), notice()];
  const colours = Object.keys(COLOURS);
  const changed = () => {
    const picture = draw(cells, digits, { cellNoise: state.noise, seed: 11 });
    scenery.show(picture);
    const sentence = ["the", state.object, "is", state.adverb, state.told, ";"].filter(Boolean).join(" ");
    const question = `what colour is the ${state.object}`;
    const seen = cells.find((cell) => cell?.object === state.object)?.colour;
    ask({ picture, sentence, question }, ({ vision, text, both }) => {
      words.textContent = `“${sentence} ${question}”`;
      bars(result, "Picture and sentence together", both.colours.map((p, i) => [
        colours[i] + (colours[i] === seen ? " (seen)" : colours[i] === state.told ? " (told)" : ""), p,
        colours[i] === seen ? "right" : colours[i] === state.told ? "wrong" : "",
      ]));
      const most = ({ colours: p }) => colours[p.indexOf(Math.max(...p))];
      // Relative uncertainty of the text, as the chapter has it.
      const relative = (2 * (text.entropy - vision.entropy)) / (text.entropy + vision.entropy);
      note.textContent = `Alone, the picture says ${most(vision)} (entropy ${vision.entropy.toFixed(2)} nats) and the sentence ${most(text)} (${text.entropy.toFixed(2)}). `
        + `Relative uncertainty of the sentence: ${relative.toFixed(2)}, on a scale from −2 (the sentence is surer) to 2 (the picture is). Together: ${most(both)}.`;
    });
  };
  const set = (key) => (value) => { state[key] = value; changed(); };
  const scenery = editor(cells, changed);
  stage.append(scenery.element, element("div", {},
    slider("Noise on the objects", { min: 0, max: 2, step: 0.1, value: state.noise }, set("noise")),
    element("div", { class: "live-row" },
      choice("Object", OBJECTS, set("object"), state.object),
      choice("Certainty", [["", "plainly"], "surely", "probably", "perhaps", "maybe"], set("adverb"), state.adverb),
      choice("Colour told", colours, set("told"), state.told)),
    words, result, note));
  changed();
}
