// Building elements. Text is only ever set as text: a title may contain markup.

export const byId = (id) => document.getElementById(id);

// element("li", {class: "entry", onclick: f}, "text", child); a name that begins with "on" is a listener's.
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (typeof value === "boolean") made.toggleAttribute(name, value);
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

const SHAPES = {
  up: "M8 13V3M4 7l4-4 4 4",
  down: "M8 3v10M4 9l4 4 4-4",
  remove: "M4 4l8 8M12 4l-8 8",
  add: "M8 3v10M3 8h10",
  exclude: "M13.5 8a5.5 5.5 0 1 1-11 0 5.5 5.5 0 0 1 11 0zM4.2 4.2l7.6 7.6",
};

function icon(name) {
  const [drawing, path] = ["svg", "path"].map((tag) => document.createElementNS("http://www.w3.org/2000/svg", tag));
  for (const [key, value] of Object.entries({ viewBox: "0 0 16 16", "aria-hidden": "true" })) {
    drawing.setAttribute(key, value);
  }
  path.setAttribute("d", SHAPES[name]);
  drawing.append(path);
  return drawing;
}

// A button with a drawing; `label` is what it is called, `text` what is written beside the drawing.
export function iconButton(shape, label, onclick, { text = "", ...attributes } = {}) {
  const words = text ? [element("span", {}, text)] : [];
  const given = { type: "button", class: "icon", "aria-label": label, title: label, onclick, ...attributes };
  return element("button", given, icon(shape), ...words);
}

// Read out by screen readers, without moving the focus.
export function say(text) {
  byId("said").textContent = text;
}

export function sentence(text) {
  const whole = text.trim();
  return whole.charAt(0).toUpperCase() + whole.slice(1) + (/[.!?…]$/.test(whole) ? "" : ".");
}

export function milliseconds(time) {
  return time < 10 ? time.toFixed(1) : time.toFixed(0);
}

// A log-probability as a share of 100.
export function percent(logProbability) {
  const share = 100 * Math.exp(logProbability);
  if (share < 0.001) return "< 0.001 %";
  return `${share.toFixed(share < 0.1 ? 3 : share < 10 ? 2 : share < 99.95 ? 1 : 0)} %`;
}

// A minus as long as a plus.
export function signed(number) {
  return `${number < 0 ? "−" : "+"}${Math.abs(number).toFixed(2)}`;
}
