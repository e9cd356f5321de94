"use strict";

// Full-text search over `window.bookIndex`: [page, title, [anchor, heading, text][]][].
// It is a script and not a JSON file so that it works from a folder as well as from a server.
const results = document.querySelector("#search-results");
const status = document.querySelector("#search-status");
const query = new URLSearchParams(location.search).get("q") || "";
const words = query.toLowerCase().split(/[^\p{L}\p{N}_.-]+/u).filter(Boolean);

const occurrences = (text, word) => text.split(word).length - 1;

const mark = (element, text) => {
  const pattern = new RegExp(`(${words.map((word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("|")})`, "gi");
  text.split(pattern).forEach((part, i) => {
    element.append(i % 2 ? Object.assign(document.createElement("mark"), { textContent: part }) : part);
  });
  return element;
};

const excerpt = (text) => {
  const first = Math.min(...words.map((word) => text.toLowerCase().indexOf(word)).filter((at) => at >= 0), text.length);
  const start = first < 80 || first === text.length ? 0 : text.indexOf(" ", first - 80) + 1;
  return (start ? "… " : "") + text.slice(start, start + 240) + (text.length > start + 240 ? " …" : "");
};

const hits = [];
for (const [page, title, sections] of words.length ? window.bookIndex : []) {
  for (const [anchor, heading, text] of sections) {
    const [lowTitle, lowHeading, lowText] = [title, heading, text].map((s) => s.toLowerCase());
    if (!words.every((word) => (lowTitle + lowHeading + lowText).includes(word))) continue;
    if (!words.some((word) => (lowHeading + lowText).includes(word))) continue;
    const score = words.reduce((sum, word) => sum + 20 * occurrences(lowHeading, word) + 5 * occurrences(lowTitle, word)
      + Math.min(occurrences(lowText, word), 8), 0);
    hits.push({ page, title, anchor, heading, text, score });
  }
}
hits.sort((a, b) => b.score - a.score);

document.querySelector("#query").value = query;
if (words.length) status.textContent = hits.length ? `${hits.length} ${hits.length === 1 ? "section" : "sections"} with “${query}”` : `Nothing found for “${query}”.`;
for (const hit of hits.slice(0, 60)) {
  const item = document.createElement("li");
  const link = document.createElement("a");
  link.href = hit.page + (hit.anchor ? `#${hit.anchor}` : "");
  mark(link, hit.heading || hit.title);
  item.append(link);
  if (hit.heading && hit.heading !== hit.title) item.append(Object.assign(document.createElement("span"), { className: "where", textContent: hit.title }));
  item.append(mark(document.createElement("p"), excerpt(hit.text)));
  results.append(item);
}
