// Lists of items that were chosen: the history, in order, and what is excluded.

import { element, iconButton, say } from "./dom.js";

// Shows `items` in `list`; `changed(items)` is called with the new list. Where `ordered`, entries can be moved.
export function entries(list, { name, ordered, changed }) {
  let items = [];

  function remove(number) {
    say(`${items[number].title} is no longer in the ${name}`);
    changed(items.filter((_, place) => place !== number));
    focus(Math.min(number, items.length - 1));
  }

  function move(number, by, focused = null) {
    const to = number + by;
    if (to < 0 || to >= items.length) return;
    const moved = [...items];
    moved.splice(to, 0, ...moved.splice(number, 1));
    say(`${items[number].title} is now number ${to + 1} of ${items.length}`);
    changed(moved);
    const button = focused && list.children[to].querySelector(`.${focused}:not(:disabled)`);
    if (button) button.focus();
    else focus(to);
  }

  function focus(number) {
    list.children[number]?.focus();
  }

  function pressed(event, number) {
    const by = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (by && event.altKey && ordered) move(number, by);
    else if (by) focus(number + by);
    else if (event.key === "Delete" || event.key === "Backspace") remove(number);
    else return;
    event.preventDefault();
  }

  function entry({ title }, number) {
    const movers = [
      ["up", -1, "Move earlier", number === 0],
      ["down", 1, "Move later", number === items.length - 1],
    ].map(([shape, by, label, disabled]) =>
      iconButton(shape, `${label}: ${title}`, () => move(number, by, shape), { class: `icon ${shape}`, disabled }));
    const onkeydown = (event) => pressed(event, number);
    return element(
      "li",
      // One stop of the Tab key for the whole list; the arrow keys go on from there.
      { tabindex: number ? "-1" : "0", "data-field": `${list.id}[${number}]`, onkeydown },
      element("span", { class: "name" }, title),
      ...(ordered ? movers : []),
      iconButton("remove", `Remove ${title}`, () => remove(number)),
    );
  }

  return (chosen) => {
    items = chosen;
    list.replaceChildren(...items.map(entry));
  };
}
