"use strict";

// Full-text search over [page, title, [anchor, heading, text][]][], packed as `window.bookIndex`.
const results = document.querySelector("#search-results");
const status = document.querySelector("#search-status");
const query = new URLSearchParams(location.search).get("q") || "";

// The index is a script and not a JSON file so that it works from a folder as well as from a server. It is gzip in
// base64: a third of its length, also where no server packs what it sends.
const unpack = async (packed) => {
  const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
};

// Words are compared by their stems: quantise, quantization and quantized are one.
const stemmer = new Stemmer();  // Porter's, from `stemmer.js`
const american = (word) => word
  .replace(/([iy])s(?=(e|ed|er|ers|es|ing|ation|ations|ational|able)$)/, "$1z")
  .replace(/^([a-z]{3,})our/, "$1or")  // behaviour, colour; but not four, hour, source
  .replace(/([aeiou][^aeiou]+[ae]l)l(?=(ed|ing|er|ers)$)/, "$1")  // modelling, labelled
  .replace(/^centre/, "center").replace(/^grey/, "gray").replace(/^artefact/, "artifact");
const stems = new Map();
const stem = (word) => {
  if (!stems.has(word)) {
    const plain = word.toLowerCase().normalize("NFKD").replace(/\p{M}/gu, "");
    stems.set(word, /^[a-z]{3,}$/.test(plain) ? stemmer.stemWord(american(plain)) : plain);
  }
  return stems.get(word);
};

// A word with signs in it counts as its parts, one after the other, and as one: D-LEAF is d, leaf, and dleaf.
const COMPOUND = /[\p{L}\p{N}\p{M}]+(?:[-_.][\p{L}\p{N}\p{M}]+)*/gu;
const split = (compound) => compound.split(/[-_.]/);
const tokens = (text) => {
  const found = [];
  for (const { 0: compound, index } of text.matchAll(COMPOUND)) {
    let start = index;
    const parts = split(compound);
    for (const [i, part] of parts.entries()) {
      const whole = i === 0 && parts.length > 1 ? { stem: stem(parts.join("")), end: index + compound.length } : null;
      found.push({ stem: stem(part), start, end: start + part.length, whole });
      start += part.length + 1;
    }
  }
  return found;
};
const wanted = (query.match(COMPOUND) || []).map((compound) => ({ parts: split(compound).map(stem), whole: stem(split(compound).join("")) }));

// Where each word of the query stands in a text: [start, end][] for each.
const places = (text, same) => {
  const found = wanted.map(() => []);
  const all = tokens(text);
  for (const [i, token] of all.entries()) {
    for (const [k, { parts, whole }] of wanted.entries()) {
      if (token.whole && same(token.whole.stem, whole)) found[k].push([token.start, token.whole.end]);
      else if (same(token.stem, whole)) found[k].push([token.start, token.end]);
      else if (parts.every((part, j) => all[i + j] && same(all[i + j].stem, part))) found[k].push([token.start, all[i + parts.length - 1].end]);
    }
  }
  return found;
};

// Append text from `from` to `to`, the found places marked.
const append = (element, text, found, from = 0, to = text.length) => {
  let at = from;
  for (const [start, end] of found.flat().sort((a, b) => a[0] - b[0])) {
    if (start < at || end > to) continue;
    element.append(text.slice(at, start), Object.assign(document.createElement("mark"), { textContent: text.slice(start, end) }));
    at = end;
  }
  element.append(text.slice(at, to));
  return element;
};

const excerpt = (text, found) => {
  const first = Math.min(...found.flat().map(([start]) => start), text.length);
  const from = first < 80 || first === text.length ? 0 : text.indexOf(" ", first - 80) + 1;
  const to = text.length > from + 240 ? text.lastIndexOf(" ", from + 240) : text.length;
  const element = document.createElement("p");
  if (from) element.append("… ");
  append(element, text, found, from, Math.max(to, first));
  if (to < text.length) element.append(" …");
  return element;
};

const search = (index, same) => {
  const hits = [];
  for (const [page, title, sections] of index) {
    const inTitle = places(title, same);
    for (const [anchor, heading, text] of sections) {
      const [inHeading, inText] = [places(heading, same), places(text, same)];
      if (!wanted.every((_, k) => inTitle[k].length || inHeading[k].length || inText[k].length)) continue;
      if (!wanted.some((_, k) => inHeading[k].length || inText[k].length)) continue;
      const score = wanted.reduce((sum, _, k) => sum + 20 * inHeading[k].length + 5 * inTitle[k].length + Math.min(inText[k].length, 8), 0)
        / (/^book\/(api\/|scoreboard)/.test(page) ? 3 : 1);  // the papers before the library and the list of their claims
      hits.push({ page, title, anchor, heading, text, inTitle, inHeading, inText, score });
    }
  }
  return hits.sort((a, b) => b.score - a.score);
};

const show = (index) => {
  // Whole words; and if there are none, words that begin so (of what is begun, a stem may be left: hallucinati).
  let hits = search(index, (word, part) => word === part);
  const whole = hits.length > 0;
  if (!whole) hits = search(index, (word, part) => word.startsWith(part) || (word.length > 4 && part.startsWith(word)));

  const counted = `${hits.length} ${hits.length === 1 ? "section" : "sections"} with ${whole ? "" : "words that begin with "}“${query}”`;
  status.textContent = hits.length ? counted : `Nothing found for “${query}”.`;
  for (const { page, title, anchor, heading, text, inTitle, inHeading, inText } of hits.slice(0, 60)) {
    const item = document.createElement("li");
    const link = document.createElement("a");
    link.href = page + (anchor ? `#${anchor}` : "");
    append(link, heading || title, heading ? inHeading : inTitle);
    item.append(link);
    if (heading && heading !== title) item.append(Object.assign(document.createElement("span"), { className: "where", textContent: title }));
    item.append(excerpt(text, inText));
    results.append(item);
  }
};

document.querySelector("#query").value = query;
if (wanted.length) {
  unpack(window.bookIndex).then(show, () => {
    status.textContent = "This browser cannot unpack the search's index. The contents list all pages.";
  });
}
