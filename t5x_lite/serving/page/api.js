// The service's HTTP interface: JSON in and out, problems of RFC 9457, the API key, events of a stream.

import { byId } from "./dom.js";

const KEY = "t5x_lite_api_key"; // in sessionStorage

// An answer that is an error, in the service's words.
export class Problem extends Error {
  constructor(status, { title, detail, errors } = {}, retryAfter = null) {
    super(detail || title || `The service answered ${status}`);
    this.status = status;
    this.errors = errors ?? [];
    this.retryAfter = retryAfter; // seconds
  }

  get passes() {
    return this.status === 429 || this.status === 503;
  }
}

export async function get(path, parameters = {}, signal) {
  const query = new URLSearchParams(parameters).toString();
  return (await answered(query ? `${path}?${query}` : path, { signal })).json();
}

export async function post(path, body, signal) {
  return (await answered(path, posted(body, signal))).json();
}

// The events of an answer as they come: {event, data}.
export async function* stream(path, body, signal) {
  const response = await answered(path, posted({ ...body, stream: true }, signal));
  const text = response.body.pipeThrough(new TextDecoderStream());
  const reader = text.getReader();
  let rest = "";
  for (;;) {
    const { done, value = "" } = await reader.read();
    const parts = (rest + value).replaceAll("\r\n", "\n").split("\n\n");
    rest = parts.pop();
    yield* parts.map(parsed).filter(({ data }) => data !== undefined);
    if (done) return;
  }
}

function posted(body, signal) {
  return { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal };
}

function parsed(part) {
  const fields = part.split("\n").map((line) => line.match(/^(event|data): ?(.*)$/)).filter(Boolean);
  const of = (name) => fields.filter((field) => field[1] === name).map((field) => field[2]).join("\n");
  return { event: of("event") || "message", data: of("data") ? JSON.parse(of("data")) : undefined };
}

async function answered(path, options) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, { detail: "The service cannot be reached" });
  }
  if (response.ok) return response;
  if (response.status === 401) {
    await askForKey(key);
    options.signal?.throwIfAborted();
    return answered(path, options);
  }
  const seconds = Number(response.headers.get("Retry-After"));
  throw new Problem(response.status, await response.json().catch(() => ({})), seconds || null);
}

let asked = null; // the one question, however many requests wait for it

function askForKey(refused) {
  asked ??= new Promise((resolve) => {
    const dialog = byId("key");
    byId("key-wrong").hidden = !refused;
    byId("key-text").value = "";
    dialog.addEventListener("close", () => {
      sessionStorage.setItem(KEY, byId("key-text").value.trim());
      asked = null;
      resolve();
    }, { once: true });
    dialog.addEventListener("cancel", (event) => event.preventDefault()); // without a key there is nothing to do
    dialog.showModal();
  });
  return asked;
}
