// Tabs of what the model can do; there are none to see where it does one thing.

import { byId } from "./dom.js";
import { change, onChange, state } from "./state.js";

export const NAMES = ["recommend", "answer", "translate"];

export function tabs(capabilities) {
  const offered = NAMES.filter((name) => capabilities[name]);
  const tab = (name) => byId(`tab-${name}`);
  document.querySelector(".tabs").hidden = offered.length < 2;

  for (const [place, name] of offered.entries()) {
    tab(name).hidden = false;
    tab(name).addEventListener("click", () => change({ tab: name }));
    tab(name).addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!by) return;
      const next = offered.at((place + by) % offered.length);
      change({ tab: next });
      tab(next).focus();
    });
  }
  onChange(() => {
    if (!offered.includes(state.tab)) state.tab = offered[0];
    for (const name of NAMES) {
      tab(name).setAttribute("aria-selected", String(name === state.tab));
      tab(name).tabIndex = name === state.tab ? 0 : -1;
      byId(name).hidden = name !== state.tab;
    }
  });
}
