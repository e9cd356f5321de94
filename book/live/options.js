// Questions with four options behind letters, as `data.worlds.users` writes them, and answers to them.

import { softmax } from "./model.js";

export const LETTERS = ["a", "b", "c", "d"];

/** Question and options: what stands before "answer". */
export const stem = ({ question, options }) => `${question} ; ${options.map((word, i) => `${LETTERS[i]} ${word}`).join(" ")} ;`;

/** Probabilities of some words, one of which is to come next, from the logits of a pass. */
export function probabilities(model, { logits }, words) {
  return [...softmax(words.map((word) => logits.at(model.tokenizer.encode(word)[0] - model.text.head.outputs)))];
}

export const most = (p) => p.indexOf(Math.max(...p));

/** What is said of an answer: W stands for the letter that is named, X for the answer's. */
export const remark = (pattern, named, answer) => pattern.replace(/\b[WX]\b/g, (slot) => LETTERS[slot === "W" ? named : answer]);
