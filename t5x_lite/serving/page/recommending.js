// The tab that recommends: whatever changes is asked for anew, and a late answer to an older question is dropped.

import { post } from "./api.js";
import { titleSearch } from "./combobox.js";
import { byId, element, milliseconds, say, sentence } from "./dom.js";
import { entries } from "./entries.js";
import { filters } from "./filters.js";
import { clearProblems, notice, showProblems, waiting } from "./notices.js";
import { ranking } from "./ranking.js";
import { change, onChange, startOver, state } from "./state.js";

const PAUSE = 300; // ms without a key before typed text is asked for
const TYPED = ["interests", "user", "k"];
const ASKED = ["source", "history", "user", "interests", "filters", "exclude", "k", "evidence", "tab"];

export function recommending(info, versions) {
  const form = document.querySelector("#recommend form");
  const list = byId("ranking");
  const showHistory = entries(byId("history"), {
    name: "history", ordered: true, changed: (items) => change({ history: items }),
  });
  const showExcluded = entries(byId("exclude"), {
    name: "list of excluded items", ordered: false, changed: (items) => change({ exclude: items }),
  });
  const showFilters = filters(info.attributes, (chosen) => change({ filters: chosen }));
  const showRanking = ranking(list, [
    {
      shape: "add", text: "Add to history", label: (title) => `Add to history: ${title}`,
      onclick: ({ item, title }) => change({ history: [...state.history, { item, title }] }),
    },
    {
      shape: "exclude", text: "Exclude", label: (title) => `Exclude ${title}`,
      onclick: ({ item, title }) => change({ exclude: [...state.exclude, { item, title }] }),
    },
  ]);
  const ask = asking(form, list, showRanking, versions);
  let timer;

  titleSearch(byId("search"), byId("found"), {
    pick: ({ item, title }) => {
      say(`${title} is in the history`);
      change({ history: [...state.history, { item, title }] });
    },
    taken: (id) => state.history.some(({ item }) => item === id),
    failed: ask.failed,
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    clearTimeout(timer);
    ask.now();
  });
  for (const name of TYPED) byId(name).addEventListener("input", ({ target }) => change({ [name]: target.value }));
  byId("interests").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.isComposing) return;
    event.preventDefault();
    form.requestSubmit();
  });
  byId("evidence").addEventListener("change", ({ target }) => change({ evidence: target.checked }));
  for (const each of form.elements.source) each.addEventListener("change", () => change({ source: each.value }));
  byId("clear").addEventListener("click", startOver);

  onChange((names) => {
    if (state.tab !== "recommend" || !names.some((name) => ASKED.includes(name))) return;
    show();
    clearTimeout(timer);
    timer = setTimeout(ask.now, names.every((name) => TYPED.includes(name)) ? PAUSE : 0);
  });

  function show() {
    form.elements.source.value = state.source;
    byId("of-history").hidden = state.source !== "history";
    byId("of-user").hidden = state.source !== "user";
    showHistory(state.history);
    byId("history-empty").hidden = state.history.length > 0;
    showExcluded(state.exclude);
    byId("of-exclude").hidden = !state.exclude.length;
    showFilters(state.filters);
    for (const name of TYPED) if (byId(name).value !== state[name]) byId(name).value = state[name];
    byId("evidence").checked = state.evidence;
  }

  byId("k").max = info.limits.k;
  byId("of-interests").hidden = !Object.keys(info.templates).some((name) => name.includes("interests"));
  byId("of-filters").open = matchMedia("(min-width: 60rem)").matches;
  peeking(list);
}

// Asks the service for what the state says; only the last question's answer is shown.
function asking(form, list, showRanking, versions) {
  let running, wait;
  const results = list.closest(".results");

  async function now() {
    running?.abort();
    wait?.stop();
    running = new AbortController();
    const { signal } = running;
    const began = performance.now();
    results.setAttribute("aria-busy", "true");
    try {
      const answer = await post("v1/recommend", question(), signal);
      clearProblems(form);
      list.classList.remove("old");
      show(answer, performance.now() - began);
    } catch (error) {
      if (signal.aborted) return;
      failed(error);
    } finally {
      if (!signal.aborted) results.setAttribute("aria-busy", "false");
    }
  }

  function show(answer, whole) {
    showRanking(answer, state.source === "history");
    byId("results-title").textContent = answer.source === "model" ? "Recommended" : "Most popular";
    byId("timing").textContent = timing(whole, answer.timing);
    byId("legend").textContent = answer.items.length ? legend(answer) : "";
    byId("notices").replaceChildren(...notices(answer));
    say(answer.items.length ? `${answer.items.length} items, first ${answer.items[0].title}` : "No item is left");
    byId("peek").textContent = answer.items.length ? `1. ${answer.items[0].title}` : "No item is left";
    versions(answer);
  }

  function failed(error) {
    if (error.passes) {
      wait = waiting(error, now);
      byId("notices").replaceChildren(wait.shown);
      return;
    }
    const placed = showProblems(form, error);
    const words = placed
      ? "This cannot be answered as it is; what is wrong stands beside it. The list is the one from before."
      : sentence(error.message);
    const again = element("button", { type: "button", class: "quiet", onclick: now }, "Try again");
    byId("notices").replaceChildren(notice(words, { kind: "error", actions: placed ? [] : [again] }));
    byId("peek").textContent = "This cannot be answered";
    list.classList.add("old");
  }

  return { now, failed };
}

// The request, without what is empty.
function question() {
  const ids = (items) => items.map(({ item }) => `id:${item}`);
  const asked = state.source === "user" ? { user: state.user.trim() } : { history: ids(state.history) };
  asked.interests = state.interests.trim();
  const given = Object.fromEntries(Object.entries(asked).filter(([, value]) => value.length));
  const k = /^\s*\d+\s*$/.test(state.k) ? Number(state.k) : state.k;
  return { ...given, k, exclude: ids(state.exclude), filters: state.filters, evidence: state.evidence };
}

function notices({ source, warnings, items }) {
  const words = warnings.map(sentence);
  if (source === "fallback") words.unshift(`Not chosen by the model. ${words.shift() ?? ""}`);
  if (!items.length) {
    words.push("No item is left: take away a filter, or something from the history or the exclusions.");
  }
  return words.map((each) => notice(each));
}

function legend({ source }) {
  return source === "model"
    ? "How likely each comes next, in percent and as a logarithm; bars compare with the first."
    : "Share of all that was taken, in percent and as a logarithm; bars compare with the first.";
}

function timing(whole, stages) {
  const each = Object.entries(stages ?? {}).map(([stage, time]) => `${stage} ${milliseconds(time)}`);
  return `${milliseconds(whole)} ms${each.length ? ` (${each.join(", ")})` : ""}`;
}

// Where the list is below the window, its first title stays in sight.
function peeking(list) {
  const button = byId("peek");
  button.addEventListener("click", () => list.closest(".results").scrollIntoView());
  new IntersectionObserver(([{ isIntersecting, boundingClientRect }]) => {
    button.hidden = isIntersecting || boundingClientRect.top < 0;
  }, { rootMargin: "0px 0px -150px" }).observe(list); // its first row is to be seen whole
}
