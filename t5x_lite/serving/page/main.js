// Starts the page: what the service can do decides what is shown.

import { get } from "./api.js";
import { byId, element, sentence } from "./dom.js";
import { notice, waiting } from "./notices.js";
import { recommending } from "./recommending.js";
import { change, follow, onChange, state } from "./state.js";
import { NAMES, tabs } from "./tabs.js";
import { writing } from "./writing.js";

async function start() {
  byId("start").replaceChildren();
  let info;
  try {
    info = await get("v1/info");
  } catch (error) {
    const again = element("button", { type: "button", class: "quiet", onclick: start }, "Try again");
    const shown = error.passes
      ? waiting(error, start).shown
      : notice(sentence(error.message), { kind: "error", actions: [again] });
    return byId("start").replaceChildren(shown);
  }
  const { capabilities } = info;
  const versions = ({ model_version, catalogue_version }) =>
    about({ ...info, model_version, ...(catalogue_version && { catalogue_version }) });
  tabs(capabilities);
  if (capabilities.recommend) recommending(info, versions);
  if (capabilities.answer) writing(byId("answer"), () => ({ prompt: byId("question").value.trim() }), versions);
  if (capabilities.translate) translating(info, versions);
  if (!NAMES.some((name) => capabilities[name])) byId("start").append(notice("This model answers nothing here."));
  versions(info);
  share.hidden = !navigator.clipboard; // browsers have it on this machine and by https only
  follow();
}

function translating({ languages }, versions) {
  const select = byId("language");
  select.append(...languages.map(({ code, name }) => element("option", { value: code }, name)));
  select.addEventListener("change", () => change({ language: select.value }));
  onChange(() => {
    select.value = state.language;
    if (select.selectedIndex < 0) select.selectedIndex = 0;
  });
  const question = () => ({ text: byId("text").value.trim(), target_language: select.value });
  writing(byId("translate"), question, versions, () => select.selectedOptions[0].text);
}

function about({ model_version: model, catalogue_version: catalogue, items }) {
  const ofItems = items ? [`catalogue ${catalogue}`, `${items.toLocaleString("en")} items`] : [];
  byId("about").textContent = [`Model ${model}`, ...ofItems].join(" · ");
}

const share = byId("share");
share.addEventListener("click", async () => {
  change({ tab: state.tab }); // so that the address says all
  await navigator.clipboard.writeText(location.href);
  share.textContent = "Copied";
  setTimeout(() => {
    share.textContent = "Copy link";
  }, 1500);
});

start();
