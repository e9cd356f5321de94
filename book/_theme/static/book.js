"use strict";

const root = document.documentElement;

// Light and dark: the reader's choice, or the system's.
const themeButton = document.querySelector("button.theme");
const isDark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
const nameTheme = () => { themeButton.querySelector("span").textContent = isDark() ? "Light" : "Dark"; };
themeButton.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  try { localStorage.setItem("theme", root.dataset.theme); } catch (error) { /* storage is off */ }
  nameTheme();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", nameTheme);
nameTheme();

// The contents, on narrow screens.
const menu = document.querySelector("button.menu");
const openMenu = (open) => {
  menu.setAttribute("aria-expanded", String(open));
  root.classList.toggle("menu-open", open);
};
menu.addEventListener("click", () => openMenu(menu.getAttribute("aria-expanded") !== "true"));
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && root.classList.contains("menu-open")) { openMenu(false); menu.focus(); }
  if (event.key === "/" && !event.ctrlKey && !event.metaKey && !event.target.closest("input, textarea, select")) {
    event.preventDefault();
    (document.querySelector("#query") || document.querySelector(".find input")).focus();
  }
});
document.querySelector('nav.contents [aria-current="page"]')?.scrollIntoView({ block: "nearest" });

// What scrolls inside itself can be reached by keyboard, but only where it does scroll.
const markScrollers = () => {
  for (const box of document.querySelectorAll(".scroll, pre, div.math, .tag_scroll-output .cell_output")) {
    if (box.scrollWidth > box.clientWidth + 1 || box.scrollHeight > box.clientHeight + 1) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
};
markScrollers();
addEventListener("load", markScrollers);
addEventListener("resize", markScrollers);
document.addEventListener("toggle", markScrollers, true);  // something folded was opened

// Copy buttons.
if (navigator.clipboard) {
  for (const code of document.querySelectorAll("div.cell_input pre, div.highlight-bash pre, div.highlight-python pre, div.highlight-yaml pre")) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "copy";
    button.textContent = "Copy";
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
    code.parentElement.append(button);
  }
}

// A link to a folded card or a row of the ledger, or to something in it, opens it.
const unfold = () => {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const folded = target?.closest("details:not([open])") || target?.querySelector(":scope > details:is(.card, .wp-claim > *):not([open])");
  if (folded) { folded.open = true; target.scrollIntoView(); }
};
addEventListener("hashchange", unfold);
unfold();

// The section being read, in the list of the page's sections.
const links = new Map([...document.querySelectorAll("nav.page-toc a")].map((link) => [link.hash.slice(1), link]));
if (links.size) {
  const sections = [...document.querySelectorAll("article section[id]")].filter((section) => links.has(section.id));
  const follow = () => {
    let current = sections[0];
    for (const section of sections) if (section.getBoundingClientRect().top < innerHeight / 3) current = section;
    for (const [id, link] of links) link.toggleAttribute("data-current", id === current?.id);
  };
  addEventListener("scroll", follow, { passive: true });
  follow();
}

// Filters of a table: every select names a data attribute of the rows. Until something is looked for, groups
// are folded, and what is only planned is hidden.
for (const form of document.querySelectorAll("form.filter")) {
  form.hidden = false;
  const groups = [...document.querySelectorAll(`#${form.dataset.table} tbody`)].map((body) => ({
    body,
    fold: body.querySelector(".fold"),
    rows: [...body.querySelectorAll("tr:not(.group)")],
  }));
  const total = groups.reduce((sum, group) => sum + group.rows.length, 0);
  const count = form.querySelector("[role=status]");
  const apply = () => {
    const words = form.elements.words.value.toLowerCase().split(/\s+/).filter(Boolean);
    const choices = [...form.querySelectorAll("select")].filter((select) => select.value);
    const searching = choices.length + words.length > 0;
    let shown = 0;
    for (const { body, fold, rows } of groups) {
      const isOpen = searching || fold.getAttribute("aria-expanded") === "true";
      let fitting = 0;
      for (const row of rows) {
        const text = `${row.textContent} ${row.dataset.words}`.toLowerCase();
        const fits = (searching || !row.classList.contains("planned")) &&
          choices.every((choice) => row.dataset[choice.name] === choice.value) && words.every((word) => text.includes(word));
        row.hidden = !fits || !isOpen;
        fitting += fits;
      }
      fold.hidden = searching;
      body.hidden = !fitting;
      shown += fitting;
    }
    count.textContent = `${shown} of ${total} claims`;
    markScrollers();
  };
  const open = (state, those = groups) => {
    for (const { fold } of those) fold.setAttribute("aria-expanded", state);
    apply();
  };
  for (const group of groups) group.fold.addEventListener("click", () => open(group.fold.getAttribute("aria-expanded") !== "true", [group]));
  form.elements.open.addEventListener("click", () => open(true));
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(() => open(false)));
  open(false);
}
