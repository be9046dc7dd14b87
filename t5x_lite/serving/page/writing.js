// The tabs that write: a question or a text in, and the model's answer as it comes.

import { Problem, stream } from "./api.js";
import { element, milliseconds, percent, sentence } from "./dom.js";
import { clearProblems, notice, showProblems, waiting } from "./notices.js";

// Wires one tab; `question()` is the body of the request, and `kind()` names what sort of answer it is.
export function writing(tab, question, versions, kind = () => "") {
  const [form, input, button] = ["form", "textarea", "button.main"].map((selector) => tab.querySelector(selector));
  const notices = tab.querySelector(".notices");
  const verb = button.textContent;
  let running, wait;

  function busy(is) {
    button.textContent = is ? "Stop" : verb;
    button.classList.toggle("stop", is);
  }

  async function ask() {
    running = new AbortController();
    busy(true);
    notices.replaceChildren();
    clearProblems(form);
    const { signal } = running;
    const answer = sheet(input.value.trim(), kind());
    try {
      await write(answer, tab, stream("v1/generate", question(), signal), versions);
      input.select();
    } catch (error) {
      answer.whole.setAttribute("aria-busy", "false");
      if (!answer.text.textContent) answer.whole.remove();
      if (error.name === "AbortError") answer.about.textContent = "stopped";
      else failed(error);
    } finally {
      running = null;
      if (!wait) busy(false);
    }
  }

  function failed(error) {
    if (error.passes) {
      const again = () => {
        wait = null;
        ask();
      };
      wait = waiting(error, again);
      return notices.replaceChildren(wait.shown);
    }
    if (!showProblems(form, error)) notices.replaceChildren(notice(sentence(error.message), { kind: "error" }));
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (!running && !wait) return ask();
    running?.abort();
    wait?.stop();
    wait = null;
    notices.replaceChildren();
    if (!running) busy(false);
  });
  input.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    if (!running && !wait) form.requestSubmit();
  });
}

function sheet(asked, kind) {
  const text = element("p", { class: "text", dir: "auto" });
  const about = element("p", { class: "about" }, "\u00a0");
  const whole = element("article", { "aria-busy": "true" }, element("h2", { dir: "auto" }, asked), text, about);
  return { whole, text, about, kind };
}

async function write({ whole, text, about, kind }, tab, events, versions) {
  const began = performance.now();
  let first;
  tab.querySelector(".written").prepend(whole);
  tab.querySelector(".empty").hidden = true;
  for await (const { event, data } of events) {
    if (event === "problem") throw new Problem(data.status, data);
    if (event !== "done") {
      first ??= performance.now() - began;
      text.append(data.text);
      continue;
    }
    text.textContent = data.text || "(an empty answer)";
    whole.setAttribute("aria-busy", "false");
    about.textContent = [kind, ...described(data, first, performance.now() - began)].filter(Boolean).join(" · ");
    whole.append(...(data.warnings ?? []).map((each) => notice(sentence(each))));
    versions(data);
  }
}

function described({ score, ended }, first, whole) {
  const begun = first === undefined ? "" : `first words after ${milliseconds(first)} ms, `;
  const parts = [`${percent(score)} likely as a whole`, `${begun}whole ${milliseconds(whole)} ms`];
  return ended ? parts : [...parts, "cut off at the longest answer"];
}
