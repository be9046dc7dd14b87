// What went wrong or is worth knowing: beside the field that a problem names, or else in a list of notices.

import { element, sentence } from "./dom.js";

export function notice(text, { kind = "warning", actions = [] } = {}) {
  const role = kind === "error" ? "alert" : "note";
  return element("div", { class: `notice ${kind}`, role }, element("p", {}, text), ...actions);
}

export function clearProblems(form) {
  for (const each of form.querySelectorAll("p.problem")) each.remove();
  for (const each of form.querySelectorAll("[aria-invalid]")) {
    each.removeAttribute("aria-invalid");
    each.removeAttribute("aria-errormessage");
  }
}

// Shows a problem's errors beside their fields in `form`; returns whether all found a place.
export function showProblems(form, { errors }) {
  clearProblems(form);
  const placed = errors.map(({ field, message, fix }, number) => {
    const place = fieldOf(form, field);
    if (!place) return false;
    place.closest("details")?.setAttribute("open", "");
    const id = `problem-${number}`;
    const words = [message, fix].filter(Boolean).map(sentence).join(" ");
    place.append(element("p", { class: "problem", id, role: "alert" }, words));
    const control = place.matches("li") ? place : place.querySelector("input, textarea, select");
    control?.setAttribute("aria-invalid", "true");
    control?.setAttribute("aria-errormessage", id);
    return true;
  });
  return placed.length > 0 && placed.every(Boolean);
}

// "history[2]" is entry 2, or else the history; what is hidden is no place for a message.
function fieldOf(form, name) {
  const found = [name, name.replace(/[[.].*$/, "")]
    .map((each) => form.querySelector(`[data-field="${CSS.escape(each)}"]`));
  return found.find((each) => each?.checkVisibility() || each?.closest("details"));
}

// A notice of a problem that goes by itself: counts down to `retry`. Returns {shown, stop}.
export function waiting(problem, retry) {
  let left = Math.ceil(problem.retryAfter ?? 2);
  const words = element("span");
  const tell = () => {
    words.textContent = `${sentence(problem.message)} Trying again in ${left} s.`;
  };
  const timer = setInterval(() => {
    left -= 1;
    if (left > 0) return tell();
    clearInterval(timer);
    retry();
  }, 1000);
  tell();
  const shown = notice(words, { kind: "busy" });
  return { shown, stop: () => clearInterval(timer) };
}
