// The ranked list: rows are kept by item, so that a new ranking is seen as moves of the old one.

import { described } from "./attributes.js";
import { element, iconButton, percent, signed } from "./dom.js";

const still = matchMedia("(prefers-reduced-motion: reduce)");

// `actions` are {shape, text, label(title), onclick(item)}; those of a row have its item.
export function ranking(list, actions) {
  return (answer, canAdd) => {
    const before = new Map([...list.children].map((row) => [row.dataset.item, row.getBoundingClientRect().top]));
    const focused = focusedIn(list);
    const best = Math.max(...answer.items.map(({ score }) => score));
    const offered = canAdd ? actions : actions.filter(({ shape }) => shape !== "add");
    list.replaceChildren(...answer.items.map((item) => row(item, best, offered)));
    refocus(list, focused);
    if (before.size && !still.matches) for (const each of list.children) animate(each, before.get(each.dataset.item));
  };
}

function row(item, best, actions) {
  const text = described(item.attributes);
  const about = element("p", { class: "about", title: text }, text || "\u00a0"); // a line in any case; it may be cut
  const reasons = (item.evidence ?? []).map(({ title, effect }) => {
    const words = [element("span", { class: "name" }, title), element("b", {}, ` ${signed(effect)}`)];
    return element("span", { class: "reason" }, ...words);
  });
  const bar = element("span", { class: "bar" }, element("span"));
  bar.firstChild.style.width = `${100 * Math.exp(item.score - best)}%`;
  return element(
    "li",
    { "data-item": item.item },
    element("span", { class: "rank" }, String(item.rank)),
    element("h3", {}, item.title),
    about,
    element(
      "div",
      { class: "score" },
      element("span", { class: "share" }, percent(item.score)),
      element("span", { class: "log", title: "log-probability" }, signed(item.score)),
      bar,
    ),
    element(
      "div",
      { class: "actions" },
      ...actions.map(({ shape, text, label, onclick }) =>
        iconButton(shape, label(item.title), () => onclick(item), { text, "data-shape": shape })),
    ),
    ...(reasons.length ? [element("p", { class: "reasons" }, "because of: ", ...reasons)] : []),
  );
}

function focusedIn(list) {
  const button = document.activeElement;
  if (!list.contains(button)) return null;
  const place = [...list.children].indexOf(button.closest("li"));
  return { item: button.closest("li").dataset.item, shape: button.dataset.shape, place };
}

// The same button of the same item, or else of the one that took its place.
function refocus(list, focused) {
  if (!focused) return;
  const rows = [...list.children];
  const same = rows.find((each) => each.dataset.item === focused.item);
  const there = same ?? rows[Math.min(focused.place, rows.length - 1)];
  there?.querySelector(`[data-shape=${focused.shape}]`)?.focus({ preventScroll: true });
}

function animate(row, from) {
  const moved = from === undefined ? null : from - row.getBoundingClientRect().top;
  const steps = moved === null ? { opacity: [0, 1] } : moved ? { transform: [`translateY(${moved}px)`, "none"] } : null;
  if (steps) row.animate(steps, { duration: 220, easing: "cubic-bezier(.2, 0, 0, 1)" });
}
