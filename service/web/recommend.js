// A history: what may be next after it, and which of its items speak for the recommended one that is pointed at.

import { curl, get, post } from "./api.js";
import { $, bar, complain, el, percent, say } from "./dom.js";
import { legend } from "./words.js";

const EVENTS = ["view", "click", "cart", "purchase", "like", "dislike"];
const LONGEST_ID = 256; // characters, by the API
const TOP = 10; // no more than it explains in one request
const FEW = 40; // lines: of a longer history each item is explained when it is asked for
const NARROW = matchMedia("(max-width: 34rem)"); // as in the style sheet
const EXAMPLES = [
  ["Tea party", "21212\n22423\nview: red retrospot tea cups"],
  ["Christmas", "view: 22086\nwooden heart christmas decoration\ncart: christmas cake cases"],
  ["红色圆点餐具", "红色圆点茶杯\nlike: 烘焙模具"],
];

let share = () => {};
let newest = 0;

export async function start(recommend, shared) {
  share = shared;
  if (!recommend) return;
  for (const [name, lines] of EXAMPLES) $("history-examples").append(el("button", { type: "button", click: () => example(lines) }, name));
  $("recommend-form").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
  $("history").addEventListener("keydown", (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) ask(); });
  for (const id of ["catalogue", "history-method", "exclude"]) $(id).addEventListener("change", () => { if ($("history").value) ask(); });
  $("catalogue").append(el("option", { value: "" }, "the model's own"));
  try {
    const { catalogues } = await (await get("/v1/catalogues")).json();
    for (const one of catalogues.filter((one) => !one.error)) $("catalogue").append(el("option", { value: one.name }, `${one.name} (${one.count} items)`));
  } catch { /* the one that every service has is there */ }
}

function example(lines) {
  $("history").value = lines;
  ask();
}

/** What is still under way belongs to another question. */
export function forget() {
  newest += 1;
}

export function current() {
  const method = $("history-method").value;
  return {
    task: "recommend", history: $("history").value, among: $("among").value, catalogue: $("catalogue").value,
    exclude: $("exclude").checked ? "1" : "", method: method === "auto" ? "" : method,
  };
}

export function restore(given) {
  for (const [id, name] of [["history", "history"], ["among", "among"]]) $(id).value = given.get(name) ?? "";
  $("exclude").checked = given.get("exclude") === "1";
  $("among-field").open = $("among").value !== "";
  $("history-method").value = given.get("method") ?? "auto";
  if ($("history-method").selectedIndex < 0) $("history-method").value = "auto";
  const named = given.get("catalogue") ?? "";
  if (named && ![...$("catalogue").options].some((one) => one.value === named)) $("catalogue").append(el("option", { value: named }, named));
  $("catalogue").value = named;
  if ($("history").value) ask();
}

const lines = (id) => $(id).value.split("\n").map((line) => line.trim()).filter(Boolean);

/** A line may be an id or a text: the catalogue knows which, and what it does not know is read. */
const item = (line) => (Array.from(line).length > LONGEST_ID ? { text: line } : { item_id: line, text: line });

function done(line) {
  const found = /^([a-z]+)\s*[:：]\s*(.+)$/i.exec(line);
  const named = found && EVENTS.includes(found[1].toLowerCase());
  return named ? { ...item(found[2]), event: found[1].toLowerCase() } : { ...item(line), event: "purchase" };
}

async function ask() {
  const own = ++newest;
  const among = lines("among");
  const user = {
    history: lines("history").map(done), ...(among.length ? { candidates: among.map(item) } : {}),
    ...($("catalogue").value ? { catalogue: $("catalogue").value } : {}), ...($("exclude").checked ? { exclude_history: true } : {}),
  };
  share(current());
  say($("try-status"), "Asking …");
  $("try-answer").replaceChildren();
  $("try-curl").hidden = true;
  const request = { inputs: { ...user, top_k: TOP } };
  try {
    const found = (await post("/v1/recommend", request)).results[0];
    if (own === newest) await show(own, found, user, request);
  } catch (error) {
    if (own === newest) complain($("try-status"), error);
  }
}

async function show(own, found, user, request) {
  const counted = `${found.history_used} events read, ${found.history_dropped} left out.`;
  const shown = (...more) => {
    $("try-curl").hidden = false;
    $("try-curl").querySelector("pre").textContent = [curl("/v1/recommend", request), ...more].join("\n\n");
  };
  shown();
  if (!found.items.length) {
    say($("try-status"), `Nothing is left to be recommended. ${counted}`);
    return;
  }
  const most = found.items[0].score || 1;
  const rows = found.items.map((one) => bar(one.text, one.score / most, percent(one.score), "item", "button"));
  const why = el("div", { id: "why", "aria-live": "off" });
  const next = el("div", {}, el("h2", {}, found.cold_start ? "Without a history: what is popular" : "What may be next"),
    el("ol", { class: "items" }, ...rows.map((row) => el("li", {}, row))));
  const beside = el("div", { class: "beside" }, next, why);
  $("try-answer").append(beside);
  if (found.cold_start) {
    rows.forEach((row) => { row.disabled = true; });
    say($("try-status"), "Popularity leans on nothing that could be shown.");
    return;
  }
  const weigh = weigher(own, found, user, counted);
  const choose = async (place) => {
    if (rows[place].getAttribute("aria-pressed") === "true") return;
    rows.forEach((row, other) => row.setAttribute("aria-pressed", String(other === place)));
    const explain = body([found.items[place]], user);
    shown(curl("/v1/explain/recommend", { ...explain, inputs: explain.inputs[0] }));
    const explained = await weigh(place);
    if (own !== newest || !explained || rows[place].getAttribute("aria-pressed") !== "true") return;
    why.replaceChildren(...(explained.error ? [el("p", { class: "error" }, explained.error.detail)] : leanings(explained, user)));
    (NARROW.matches ? rows[place].parentElement : beside).append(why); // there is no room but below what was chosen
  };
  rows.forEach((row, place) => {
    for (const event of ["pointerenter", "focus", "click"]) row.addEventListener(event, () => choose(place));
  });
  await choose(0);
  if (own === newest && user.history.length <= FEW && rows.length > 1) weigh(1, false); // and with it all others
}

const body = (items, user) => ({
  inputs: items.map((one) => ({ ...user, ...(one.item_id === null ? { candidates: [user.candidates[one.candidate_index]] } : { target: one.item_id }) })),
  method: $("history-method").value,
});

/** Explains an item: the first alone, then with one more all others, where that is quick. None is asked for again. */
function weigher(own, found, user, counted) {
  const known = new Map();
  return async (place, told = true) => {
    if (!known.has(place)) {
      const more = known.size > 0 && user.history.length <= FEW;
      const places = found.items.map((_, other) => other).filter((other) => other === place || (more && !known.has(other)));
      if (told) say($("try-status"), `${counted} Weighing the history …`);
      const answer = post("/v1/explain/recommend", body(places.map((other) => found.items[other]), user));
      places.forEach((other, number) => known.set(other, answer.then((all) => all.results[number])));
      try {
        const spent = (await answer).timings_ms.explain;
        if (told && own === newest) say($("try-status"), `${counted} Explained in ${Math.round(spent)} ms.`);
      } catch (error) {
        places.forEach((other) => known.delete(other)); // to be asked for again
        if (told && own === newest) complain($("try-status"), error);
      }
    }
    return known.get(place)?.catch(() => null);
  };
}

const points = (weight) => `${weight < 0 ? "−" : "+"}${Math.abs(weight * 100).toFixed(2)}`;

/** The history's items as they were sent, each with what it says for or against the target. */
function leanings(explained, user) {
  const peak = Math.max(...explained.history.map((one) => Math.abs(one.weight)), 1e-4);
  const sent = [...explained.history].sort((a, b) => a.history_indexes[0] - b.history_indexes[0]);
  const rows = sent.map((one) => {
    const row = bar(one.text, Math.abs(one.weight) / peak, points(one.weight), one.weight < 0 ? "against" : "for");
    const events = one.history_indexes.map((index) => user.history[index].event);
    const counts = [...new Set(events)].map((event) => [event, events.filter((other) => other === event).length]);
    const said = counts.map(([event, count]) => (count > 1 ? `${event} × ${count}` : event)).join(", ");
    row.querySelector(".name").append(" ", el("span", { class: "note" }, said));
    row.style.setProperty("--lean", Math.abs(one.weight) / peak);
    return el("li", {}, row);
  });
  const unit = explained.method === "attention" ? "percent of its attention" : "percentage points of its score";
  return [el("h2", {}, `What speaks for “${explained.target.text}”`),
    el("ol", { class: "items leanings", tabindex: "0", "aria-label": "The history, weighed" }, ...rows),
    legend({ signed: true, method: explained.method }, "it", unit)];
}
