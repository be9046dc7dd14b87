// What is asked for, kept in the address' fragment, so that a link shows the same list.

const EMPTY = {
  tab: "recommend",
  source: "history", // or "user"
  history: [], // {item, title}, oldest first
  user: "",
  interests: "",
  filters: [], // as the service reads them: "genre=Comedy"
  exclude: [], // {item, title}
  k: "10", // as typed: the service says what is wrong with it
  evidence: true,
  language: "de", // to translate into
};

export const state = { ...EMPTY };

const listeners = [];

// Calls `listener(names)` after changes, with the names of what changed.
export function onChange(listener) {
  listeners.push(listener);
}

export function change(part) {
  Object.assign(state, part);
  history.replaceState(null, "", `#${written()}`);
  tell(Object.keys(part));
}

export function startOver() {
  change({ ...EMPTY, tab: state.tab, language: state.language });
}

// Takes the state of the address, also when it is edited or a link is opened in the same window.
export function follow() {
  const read = () => {
    Object.assign(state, EMPTY, parsed(location.hash.slice(1)));
    tell(Object.keys(EMPTY));
  };
  addEventListener("hashchange", read);
  read();
}

function tell(names) {
  for (const listener of listeners) listener(names);
}

function written() {
  const fields = new URLSearchParams();
  for (const [name, value] of Object.entries(state)) {
    if (Array.isArray(value)) for (const each of value) fields.append(name, asText(each));
    else if (value !== EMPTY[name]) fields.set(name, String(value));
  }
  return fields.toString();
}

function parsed(fragment) {
  const fields = new URLSearchParams(fragment);
  const found = {};
  for (const [name, empty] of Object.entries(EMPTY)) {
    if (!fields.has(name)) continue;
    if (name === "filters") found[name] = fields.getAll(name);
    else if (Array.isArray(empty)) found[name] = fields.getAll(name).map(asItem);
    else found[name] = typeof empty === "boolean" ? fields.get(name) === "true" : fields.get(name);
  }
  return found;
}

// An item has its title beside its id: there is no look-up by id. The first blank ends the id.
function asText(value) {
  return typeof value === "string" ? value : `${encodeURIComponent(value.item)} ${value.title}`;
}

function asItem(text) {
  const [id, ...title] = text.split(" ");
  let item = id;
  try {
    item = decodeURIComponent(id);
  } catch {
    // A link that was edited by hand: the service says that there is no such item.
  }
  return { item, title: title.join(" ") || item };
}
