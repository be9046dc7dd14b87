// Filters of the catalogue's attributes: a pick list where the service lists the values, from and to for years, and
// rules of any attribute, comparison and value.

import { byId, element, iconButton } from "./dom.js";

const COMPARISONS = { "=": "is", "!=": "is not", ">=": "at least", "<=": "at most", ">": "above", "<": "below" };
const RANGE = "year"; // what every reader of catalogues calls it

// `changed(filters)` is called with what the service reads. Returns a function that shows given filters.
export function filters(attributes, changed) {
  const names = Object.keys(attributes);
  let shown = [];
  let rules = 0; // ever added, for ids
  byId("of-filters").hidden = !names.length;
  const controls = names.flatMap((name) => (name === RANGE ? range(name) : attributes[name].length ? picks(name) : []));
  byId("filters").replaceChildren(...controls.map(({ field }) => field));
  byId("filters").addEventListener("input", read);
  byId("add-rule").addEventListener("click", () => addRule().querySelector("select").focus());

  function picks(name) {
    const choices = attributes[name].map((value) => element("option", { value }, value));
    const select = element("select", { id: `filter-${name}` }, element("option", { value: "" }, "any"), ...choices);
    return [{ name, sign: "=", input: select, field: labelled(name, select) }];
  }

  function range(name) {
    const inputs = ["from", "to"].map((end) =>
      element("input", { type: "number", inputmode: "numeric", placeholder: end, "aria-label": `${name} ${end}` }));
    const field = element("div", { class: "field range", role: "group", "aria-label": name });
    field.append(element("span", { class: "label" }, name), inputs[0], element("span", {}, "–"), inputs[1]);
    return [{ name, sign: ">=", input: inputs[0], field }, { name, sign: "<=", input: inputs[1], field }];
  }

  function addRule(name = names[0], sign = "=", value = "") {
    const known = names.includes(name) ? names : [...names, name]; // of a link: the service says what is wrong with it
    const attribute = select("Attribute", known.map((each) => [each, each]), name);
    const comparison = select("Comparison", Object.entries(COMPARISONS), sign);
    const values = element("datalist", { id: `values-${++rules}` });
    const given = { type: "text", "aria-label": "Value", placeholder: "value", spellcheck: "false", list: values.id };
    const text = element("input", { ...given, value });
    const offer = () => values.replaceChildren(
      ...(attributes[attribute.value] ?? []).map((each) => element("option", { value: each })));
    attribute.addEventListener("input", offer);
    offer();
    const rule = element("div", { class: "field rule", oninput: read }, attribute, comparison, text, values);
    rule.append(iconButton("remove", "Remove this filter", () => {
      rule.remove();
      byId("add-rule").focus();
      read();
    }));
    byId("rules").append(rule);
    return rule;
  }

  function read() {
    const found = [];
    const put = (field, name, sign, value) => {
      if (!value.trim()) return;
      field.dataset.field = `filters[${found.length}]`; // where a problem of this filter is shown
      found.push(`${name}${sign}${value.trim()}`);
    };
    for (const { name, sign, input, field } of controls) put(field, name, sign, input.value);
    for (const rule of byId("rules").children) {
      put(rule, ...[...rule.querySelectorAll("select, input")].map(({ value }) => value));
    }
    shown = found;
    count();
    changed(found);
  }

  function count() {
    byId("filter-count").textContent = shown.length || "";
  }

  return (given) => {
    if (given.join("\n") === shown.join("\n")) return;
    for (const { input } of controls) input.value = "";
    byId("rules").replaceChildren();
    for (const text of given) {
      const [, name, sign, value] = text.match(/^\s*([^<>=!]*?)\s*([<>=!]+)\s*(.*?)\s*$/) ?? [null, text, "=", ""];
      const control = controls.find((each) => each.name === name && each.sign === sign && !each.input.value);
      if (control) control.input.value = value;
      if (control?.input.value !== value) addRule(name, sign, value);
    }
    read();
  };
}

function labelled(name, control) {
  return element("div", { class: "field beside" }, element("label", { for: control.id }, name), control);
}

function select(label, options, chosen) {
  const made = element("select", { "aria-label": label });
  made.append(...options.map(([value, text]) => element("option", { value, selected: value === chosen }, text)));
  return made;
}
