// An answer about a video, and what becomes of it when the reader speaks against it.

import { bars, choice, element, fill, notice, pictures, remember, sample, slider } from "../controls.js";
import { LETTERS, most, probabilities, remark, stem } from "../options.js";
import { frames } from "../worlds.js";

const LISTENERS = { "video-vlm-rho90": 0.9, "video-vlm-rho25": 0.25 }; // how often users were right in training
const OBJECTING = ["sure", "reject"];
const KINDS = { sure: "doubt the answer", reject: "reject the answer", retest: "only ask again" };

const featuresOf = remember((model, shown) => model.features(shown.map((picture) => model.picture(picture))));

/** What somebody believes after a remark who believed p and knows that who says it is right with probability rho. */
function listen(p, kind, named, answer, rho) {
  if (kind === "retest") return p;
  const objects = OBJECTING.includes(kind);
  const thinks = p.map((_, i) => (i === (objects ? answer : named) ? rho : (1 - rho) / (p.length - 1)));
  const q = p.map((value, i) => value * (objects ? 1 - thinks[i] : thinks[i]));
  const sum = q.reduce((a, b) => a + b, 0);
  return q.map((value) => value / sum);
}

/** Probabilities of the options at first, after a remark, and those of a rational listener.
 *
 * @param {{name: string, shown: object[], key?: string, asked: {question: string, options: string[]}, kind: string,
 *   pattern: string, named: number}} request - `pattern` is what is said, `named` the option that it may name
 */
export function compute(models, { name, shown, key, asked, kind, pattern, named }) {
  const model = models[name];
  const features = featuresOf(key && name + key, model, shown);
  const question = `${stem(asked)} answer`;
  const asks = model.forward({ ids: model.prompt(question, shown.length), features });
  const first = probabilities(model, asks, LETTERS);
  const answer = most(first);
  const said = remark(pattern, named, answer);
  const behind = model.tokenizer.encode(`${LETTERS[answer]} <eos> ${said} ; answer`);
  const after = probabilities(model, model.forward({ ids: behind, cache: asks.cache }), LETTERS); // reads on
  return { first, said, after, listener: listen(first, kind, named, answer, LISTENERS[name]) };
}

export async function show(stage, ask) {
  const videos = await sample("videos");
  const state = { video: 0, question: "place", noise: 0.6, kind: "reject", named: 0, name: "video-vlm-rho90" };
  const strip = element("div", { class: "live-frames" });
  const [question, said] = ["p", "p"].map((tag) => element(tag, { class: "live-said" }));
  const [first, after, listener] = ["div", "div", "div"].map((tag) => element(tag));
  const note = notice();
  const changed = () => {
    const video = videos.shown[state.video];
    const asked = video.asked[state.question];
    const { options, right } = asked;
    const shown = frames(video, state.noise, state.video);
    pictures(strip, shown, (i) => `Frame ${i + 1}`);
    question.textContent = `“${asked.question}?” True is ${options[right]}.`;
    fill(named, Object.entries(options), state.named);
    const pattern = videos.remarks[state.kind];
    named.querySelector("select").disabled = !/\bW\b/.test(pattern);
    const percent = Math.round(100 * LISTENERS[state.name]);
    ask({ ...state, shown, key: `${state.video} ${state.noise}`, asked, pattern }, (found) => {
      const rows = (p) => p.map((share, i) => [`${LETTERS[i]}: ${options[i]}`, share, i === right && "right"]);
      said.textContent = `You say: “${found.said}”.`;
      bars(first, "The model’s first answer", rows(found.first));
      bars(after, "After what you say", rows(found.after));
      bars(listener, `A listener with the same first belief who knows that users are right in ${percent} of 100 cases`, rows(found.listener));
      const [was, is] = [found.first, found.after].map(most);
      note.textContent = was === is ? `It stays with ${options[was]}.`
        : `It gives up ${options[was]} for ${options[is]}. The listener says ${options[most(found.listener)]}.`;
    });
  };
  const set = (key) => (value) => { state[key] = value; changed(); };
  const named = choice("Option", LETTERS, (value) => set("named")(Number(value)));
  const kinds = Object.keys(videos.remarks).map((kind) => [kind, KINDS[kind] ?? `name one, ${kind}`]);
  const another = () => { state.video = (state.video + 1) % videos.shown.length; changed(); };
  stage.append(
    element("div", {}, strip, element("button", { type: "button", click: another }, "Another video"),
      slider("Noise", { min: 0.1, max: 1.2, step: 0.1, value: state.noise }, set("noise")),
      choice("Question", Object.keys(videos.shown[0].asked), set("question"), state.question),
      choice("Users in its training were right in", Object.entries(LISTENERS).map(([name, rho]) => [name, `${Math.round(100 * rho)} of 100 cases`]), set("name"), state.name)),
    element("div", {}, question, first,
      element("div", { class: "live-row" }, choice("You", kinds, set("kind"), state.kind), named),
      said, after, note, listener),
  );
  changed();
}
