// Tabs, and the state of the page as its fragment, #tab=try&text=…, so that a link can be shared.

import { get } from "./api.js";
import { $, complain } from "./dom.js";
import * as attention from "./attention.js";
import * as batch from "./batch.js";
import * as models from "./models.js";
import * as tries from "./try.js";

const PARTS = { try: tries, attention, batch, models };
let served = [];

function show(name, focus = false) {
  for (const other of Object.keys(PARTS)) {
    const chosen = other === name;
    const tab = $(`tab-${other}`);
    tab.setAttribute("aria-selected", String(chosen));
    tab.tabIndex = chosen ? 0 : -1;
    $(`panel-${other}`).hidden = !chosen;
    if (chosen && focus) tab.focus();
    PARTS[other].visible?.(chosen);
  }
}

/** Writes the state of a part into the fragment. Parts call it after every change. */
function share(tab, values) {
  const fragment = new URLSearchParams({ tab });
  for (const [name, value] of Object.entries(values)) if (value) fragment.set(name, value);
  history.replaceState(null, "", `#${fragment}`);
}

function follow() {
  const fragment = new URLSearchParams(location.hash.slice(1));
  const name = fragment.get("tab") in PARTS ? fragment.get("tab") : "try";
  show(name);
  PARTS[name].restore?.(fragment);
}

function onKey(event) {
  const names = Object.keys(PARTS);
  const here = names.findIndex((name) => $(`tab-${name}`) === event.target);
  const to = { ArrowRight: here + 1, ArrowLeft: here - 1, Home: 0, End: names.length - 1 }[event.key];
  if (here < 0 || to === undefined) return;
  event.preventDefault();
  open(names[(to + names.length) % names.length], true);
}

function open(name, focus) {
  show(name, focus);
  if (PARTS[name].current) share(name, PARTS[name].current());
  else share(name, {});
}

async function loadMethods() {
  try {
    tries.offer(await (await get("/openapi.json")).json());
  } catch { /* the method auto is always offered */ }
}

async function start() {
  $("tabs").addEventListener("keydown", onKey);
  for (const name of Object.keys(PARTS)) $(`tab-${name}`).addEventListener("click", () => open(name, true));
  try {
    served = (await (await get("/v1/models")).json()).models;
    $("served").textContent = served.map((model) => `${model.name} ${model.version}`).join(", ");
  } catch (error) {
    complain($("served"), error);
  }
  for (const [name, part] of Object.entries(PARTS)) part.start(served, (values) => share(name, values));
  window.addEventListener("hashchange", follow);
  const methods = loadMethods();
  if (new URLSearchParams(location.hash.slice(1)).has("method")) await methods; // only then must they be there to choose from
  follow();
}

start();
