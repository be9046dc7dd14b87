// Search while typing: the combobox pattern of WAI-ARIA, with a list that the input keeps the focus of.

import { get } from "./api.js";
import { described } from "./attributes.js";
import { element, say } from "./dom.js";

const PAUSE = 120; // ms without a key before a search
const MOST = 8;

// Calls `pick({item, title, attributes})`; `taken(id)` says which are in the history already.
export function titleSearch(input, list, { pick, taken, failed }) {
  let timer, running, options = [], active = -1;
  let searched = ""; // what the options are of

  function close() {
    clearTimeout(timer);
    running?.abort();
    searched = "";
    list.hidden = true;
    list.replaceChildren();
    options = [];
    input.setAttribute("aria-expanded", "false");
    activate(-1);
  }

  function activate(number) {
    active = number;
    [...list.querySelectorAll("[role=option]")].forEach((option, place) => {
      option.setAttribute("aria-selected", String(place === number));
      if (place === number) option.scrollIntoView({ block: "nearest" });
    });
    if (number < 0) input.removeAttribute("aria-activedescendant");
    else input.setAttribute("aria-activedescendant", `found-${number}`);
  }

  async function search() {
    clearTimeout(timer);
    running?.abort();
    running = new AbortController();
    const typed = input.value.trim();
    if (!typed) return close();
    try {
      const { items } = await get("v1/items", { q: typed, limit: MOST }, running.signal);
      show(items, typed);
    } catch (error) {
      if (error.name === "AbortError") return;
      close();
      failed(error);
    }
  }

  function show(items, typed) {
    options = items;
    searched = typed;
    const rows = items.map((each, number) => option(each, number, typed, taken(each.item), () => choose(number)));
    const nothing = element("li", { class: "nothing", role: "presentation" }, "No title has words that begin so.");
    list.replaceChildren(...(rows.length ? rows : [nothing]));
    list.hidden = false;
    input.setAttribute("aria-expanded", String(rows.length > 0));
    activate(rows.length ? 0 : -1);
    say(rows.length ? `${rows.length} titles` : nothing.textContent);
  }

  // The active title; of what was typed since, the first, so that nobody has to wait before Enter.
  async function enter() {
    const typed = input.value.trim();
    if (!typed) return;
    if (list.hidden || typed !== searched) await search();
    if (typed === input.value.trim() && typed === searched) choose(active);
  }

  function choose(number) {
    const chosen = options[number];
    if (!chosen || taken(chosen.item)) return;
    input.value = "";
    close();
    pick(chosen);
  }

  const keys = {
    ArrowDown: () => activate((active + 1) % options.length),
    ArrowUp: () => activate((active - 1 + options.length) % options.length),
  };

  input.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(search, PAUSE);
  });
  input.addEventListener("keydown", (event) => {
    if (event.isComposing) return;
    if (event.key === "Enter") {
      event.preventDefault();
      enter();
    } else if (event.key === "Escape") {
      if (list.hidden) input.value = "";
      close();
    } else if (event.key in keys && options.length) {
      event.preventDefault();
      keys[event.key]();
    } else if (event.key === "ArrowDown") {
      search();
    }
  });
  input.addEventListener("blur", close);
  list.addEventListener("mousedown", (event) => event.preventDefault()); // the focus stays in the input
}

function option({ title, attributes }, number, typed, isTaken, onclick) {
  const about = isTaken ? "in the history" : described(attributes);
  const given = { role: "option", id: `found-${number}`, "aria-selected": "false", "aria-disabled": String(isTaken) };
  const words = element("span", { class: "name" }, ...withTyped(title, typed));
  return element("li", { ...given, onclick }, words, element("span", { class: "about" }, about));
}

// The title in pieces, the beginnings of words that were typed as <mark>.
function withTyped(title, typed) {
  const wanted = typed.toLowerCase().split(/[^\p{L}\p{N}]+/u).filter(Boolean);
  return title.split(/(?<![\p{L}\p{N}])(?=[\p{L}\p{N}])/u).flatMap((word) => {
    const begun = wanted.filter((each) => word.toLowerCase().startsWith(each)).sort((a, b) => b.length - a.length)[0];
    return begun ? [element("mark", {}, word.slice(0, begun.length)), word.slice(begun.length)] : [word];
  });
}
