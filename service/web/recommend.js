// A history: its recommendations, and the attribution of its items for the selected recommendation.

import { curl, get, post } from "./api.js";
import { $, bar, complain, el, languageNote, percent, runOn, say } from "./dom.js";
import { legend } from "./words.js";

const EVENTS = ["view", "click", "cart", "purchase", "like", "dislike"];
const MAX_ID_CHARS = 256; // of the API
const TOP = 10; // at most the number of items that one request explains
const MAX_PREFETCH_LINES = 40; // with a longer history, an item is explained when it is selected
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
  runOn($("recommend-form"), ask);
  for (const id of ["catalogue", "history-method", "exclude"]) $(id).addEventListener("change", () => { if ($("history").value) ask(); });
  $("catalogue").append(el("option", { value: "" }, "the model's own"));
  try {
    const { catalogues } = await (await get("/v1/catalogues")).json();
    for (const { name, count } of catalogues.filter((catalogue) => !catalogue.error)) $("catalogue").append(el("option", { value: name }, `${name} (${count} items)`));
  } catch { /* the model's own catalogue is always offered */ }
}

function example(lines) {
  $("history").value = lines;
  ask();
}

/** Ignores the answers of requests under way. */
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

export function restore(fragment) {
  for (const [id, name] of [["history", "history"], ["among", "among"]]) $(id).value = fragment.get(name) ?? "";
  $("exclude").checked = fragment.get("exclude") === "1";
  $("among-field").open = $("among").value !== "";
  $("history-method").value = fragment.get("method") ?? "auto";
  if ($("history-method").selectedIndex < 0) $("history-method").value = "auto";
  const catalogue = fragment.get("catalogue") ?? "";
  if (catalogue && ![...$("catalogue").options].some((option) => option.value === catalogue)) $("catalogue").append(el("option", { value: catalogue }, catalogue));
  $("catalogue").value = catalogue;
  if ($("history").value) ask();
}

const lines = (id) => $(id).value.split("\n").map((line) => line.trim()).filter(Boolean);

/** Returns a line as an item. It is sent as ID and as text: the text counts if the catalogue lacks the ID. */
const item = (line) => (Array.from(line).length > MAX_ID_CHARS ? { text: line } : { item_id: line, text: line });

/** Returns a line of the history as an event. */
function eventOf(line) {
  const match = /^([a-z]+)\s*[:：]\s*(.+)$/i.exec(line);
  const known = match && EVENTS.includes(match[1].toLowerCase());
  return known ? { ...item(match[2]), event: match[1].toLowerCase() } : { ...item(line), event: "purchase" };
}

async function ask() {
  const serial = ++newest;
  const among = lines("among");
  const user = {
    history: lines("history").map(eventOf), ...(among.length ? { candidates: among.map(item) } : {}),
    ...($("catalogue").value ? { catalogue: $("catalogue").value } : {}), ...($("exclude").checked ? { exclude_history: true } : {}),
  };
  share(current());
  say($("try-status"), "Running …");
  $("try-answer").replaceChildren();
  $("try-curl").hidden = true;
  const request = { inputs: { ...user, top_k: TOP } };
  try {
    const result = (await post("/v1/recommend", request)).results[0];
    if (serial === newest) await show(serial, result, user, request);
  } catch (error) {
    if (serial === newest) complain($("try-status"), error);
  }
}

async function show(serial, result, user, request) {
  const counts = `${result.history_used} events read, ${result.history_dropped} dropped.`;
  const showCurl = (...more) => {
    $("try-curl").hidden = false;
    $("try-curl").querySelector("pre").textContent = [curl("/v1/recommend", request), ...more].join("\n\n");
  };
  showCurl();
  if (!result.items.length) {
    say($("try-status"), `There is no item to recommend. ${counts}`);
    return;
  }
  const peak = result.items[0].score || 1;
  const rows = result.items.map(({ text, score }) => bar(text, score / peak, percent(score), "item", "button"));
  const why = el("div", { id: "why", "aria-live": "off" });
  const list = el("div", {}, el("h2", {}, result.cold_start ? "Popular items (no history)" : "Recommendations"),
    ...languageNote(result, "A text above"), el("ol", { class: "items" }, ...rows.map((row) => el("li", {}, row))));
  const beside = el("div", { class: "beside" }, list, why);
  $("try-answer").append(beside);
  if (result.cold_start) {
    rows.forEach((row) => { row.disabled = true; });
    say($("try-status"), "Without a history there is no attribution.");
    return;
  }
  const explain = explainer(serial, result, user, counts);
  const choose = async (rank) => {
    if (rows[rank].getAttribute("aria-pressed") === "true") return;
    rows.forEach((row, other) => row.setAttribute("aria-pressed", String(other === rank)));
    const { inputs, method } = body([result.items[rank]], user);
    showCurl(curl("/v1/explain/recommend", { inputs: inputs[0], method }));
    const explained = await explain(rank);
    if (serial !== newest || !explained || rows[rank].getAttribute("aria-pressed") !== "true") return;
    why.replaceChildren(...(explained.error ? [el("p", { class: "error" }, explained.error.detail)] : attribution(explained, user)));
    (NARROW.matches ? rows[rank].parentElement : beside).append(why); // a narrow page has room only below the item
  };
  rows.forEach((row, rank) => {
    for (const event of ["pointerenter", "focus", "click"]) row.addEventListener(event, () => choose(rank));
  });
  await choose(0);
  if (serial === newest && user.history.length <= MAX_PREFETCH_LINES && rows.length > 1) explain(1, false); // and all other items
}

const body = (items, user) => ({
  inputs: items.map((item) => ({ ...user, ...(item.item_id === null ? { candidates: [user.candidates[item.candidate_index]] } : { target: item.item_id }) })),
  method: $("history-method").value,
});

/**
 * Returns a function that explains an item. The first call explains one item. With a short history, the second call
 * explains all others too. No item is requested twice.
 */
function explainer(serial, result, user, counts) {
  const known = new Map();
  return async (rank, visible = true) => {
    if (!known.has(rank)) {
      const prefetch = known.size > 0 && user.history.length <= MAX_PREFETCH_LINES;
      const ranks = result.items.map((_, other) => other).filter((other) => other === rank || (prefetch && !known.has(other)));
      if (visible) say($("try-status"), `${counts} Explaining …`);
      const answer = post("/v1/explain/recommend", body(ranks.map((other) => result.items[other]), user));
      ranks.forEach((other, index) => known.set(other, answer.then((all) => all.results[index])));
      try {
        const explainMs = (await answer).timings_ms.explain;
        if (visible && serial === newest) say($("try-status"), `${counts} Explained in ${Math.round(explainMs)} ms.`);
      } catch (error) {
        ranks.forEach((other) => known.delete(other)); // a later call tries again
        if (visible && serial === newest) complain($("try-status"), error);
      }
    }
    return known.get(rank)?.catch(() => null);
  };
}

const points = (weight) => `${weight < 0 ? "−" : "+"}${Math.abs(weight * 100).toFixed(2)}`;

/** Returns elements that show the history's items in the order they were sent, each with its weight for the target. */
function attribution(explained, user) {
  const peak = Math.max(...explained.history.map((item) => Math.abs(item.weight)), 1e-4);
  const items = [...explained.history].sort((a, b) => a.history_indexes[0] - b.history_indexes[0]);
  const rows = items.map(({ text, weight, history_indexes: indexes }) => {
    const row = bar(text, Math.abs(weight) / peak, points(weight), weight < 0 ? "against" : "for");
    const events = indexes.map((index) => user.history[index].event);
    const counts = [...new Set(events)].map((event) => [event, events.filter((other) => other === event).length]);
    const label = counts.map(([event, count]) => (count > 1 ? `${event} × ${count}` : event)).join(", ");
    row.querySelector(".name").append(" ", el("span", { class: "note" }, label));
    row.style.setProperty("--weight", Math.abs(weight) / peak);
    return el("li", {}, row);
  });
  const unit = explained.method === "attention" ? "percent of the attention" : "percentage points of the score";
  return [el("h2", {}, `Attribution for “${explained.target.text}”`),
    el("ol", { class: "items attributions", tabindex: "0", "aria-label": "History with attributions" }, ...rows),
    legend({ signed: true, method: explained.method }, "it", unit)];
}
