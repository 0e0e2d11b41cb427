// One text, or one dialogue: its answer, the words that speak for it, and the request that gets both.

import { curl, post } from "./api.js";
import { $, bar, complain, el, percent, say, signed } from "./dom.js";

const EXAMPLES = [
  ["Shares of Acme plunge after profit warning", ""],
  ["Stock A soars while B plunges", "B"],
  ["The room was lovely, but the staff ignored us all week", ""],
  ["公司净利润同比增长50%，股价涨停", ""],
  ["平安银行：净利润大增；永吉股份：股东拟减持", "永吉股份"],
];
const HEAVIEST = 8;

let share = () => {};
let newest = 0;

export function start(served, shared) {
  share = shared;
  const sentiment = served.find((model) => model.task === "sentiment");
  const intent = served.find((model) => model.task === "intent");
  for (const label of sentiment?.labels ?? []) $("target").append(el("option", { value: label }, label));
  for (const [text, entity] of EXAMPLES) {
    const shown = text.length > 28 ? `${text.slice(0, 26)}…` : text;
    const title = entity ? `${text} (towards ${entity})` : text;
    $("examples").append(el("button", { type: "button", title, click: () => example(text, entity) }, shown));
  }
  $("sentiment-form").addEventListener("submit", (event) => { event.preventDefault(); askSentiment(); });
  $("text").addEventListener("keydown", (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) askSentiment(); });
  for (const id of ["method", "target"]) $(id).addEventListener("change", () => { if ($("text").value) askSentiment(); });
  $("intent-form").addEventListener("submit", (event) => { event.preventDefault(); askIntent(); });
  $("add-turn").addEventListener("click", () => addTurn(lastSpeaker() === "customer" ? "agent" : "customer", "").focus());
  $("try-curl").querySelector(".copy").addEventListener("click", copy);
  if (intent) {
    $("task").hidden = false;
    $("labels").append(el("option", { value: "" }, "the service's own choice"));
    for (const [name, labels] of Object.entries(intent.label_sets))
      $("labels").append(el("option", { value: name }, `${name} (${labels.length} intents)`));
    for (const radio of document.querySelectorAll("input[name=task]")) radio.addEventListener("change", () => choose(radio.value));
  }
  addTurn("customer", "");
}

function example(text, entity) {
  $("text").value = text;
  $("entity").value = entity;
  askSentiment();
}

function choose(task) {
  for (const radio of document.querySelectorAll("input[name=task]")) radio.checked = radio.value === task;
  $("sentiment-form").hidden = task === "intent";
  $("intent-form").hidden = task !== "intent";
  newest += 1; // what is still under way belongs to the other task
  clear("");
}

function clear(sentence) {
  say($("try-status"), sentence);
  $("try-answer").replaceChildren();
  $("try-curl").hidden = true;
}

export function current() {
  if (!$("intent-form").hidden) {
    return { task: "intent", labels: $("labels").value, turns: JSON.stringify(turns().map((turn) => [turn.speaker, turn.text])) };
  }
  const method = $("method").value;
  return { text: $("text").value, entity: $("entity").value.trim(), method: method === "auto" ? "" : method, target: $("target").value };
}

export function restore(given) {
  if (given.get("task") === "intent" && !$("task").hidden) {
    choose("intent");
    $("labels").value = given.get("labels") ?? "";
    const read = parsed(given.get("turns"));
    if (read.length) {
      $("turns").replaceChildren();
      for (const [speaker, text] of read) addTurn(speaker, text);
      askIntent();
    }
    return;
  }
  $("text").value = given.get("text") ?? "";
  $("entity").value = given.get("entity") ?? "";
  for (const [id, usual] of [["method", "auto"], ["target", ""]]) {
    $(id).value = given.get(id) ?? usual;
    if ($(id).selectedIndex < 0) $(id).value = usual;
  }
  if ($("text").value) askSentiment();
}

/** Turns of a fragment that anyone may have written. */
function parsed(turnsText) {
  try {
    const read = JSON.parse(turnsText ?? "[]");
    return Array.isArray(read) ? read.filter((turn) => Array.isArray(turn) && ["customer", "agent"].includes(turn[0]) && typeof turn[1] === "string") : [];
  } catch {
    return [];
  }
}

async function askSentiment() {
  const own = ++newest;
  const { text, entity, method, target } = current();
  const item = entity ? { text, entity } : { text };
  const explain = { inputs: item, method: method || "auto", ...(target ? { target } : {}) };
  share(current());
  clear("Asking …");
  const bars = el("div");
  const words = el("div");
  try {
    const answer = (await post("/v1/sentiment", { inputs: item })).results[0];
    if (own !== newest) return;
    say($("try-status"), "Weighing its words …");
    const about = entity ? ` towards ${entity}` : "";
    bars.append(
      el("p", { class: "verdict" }, el("strong", {}, answer.label), about, el("span", { class: "note" },
        `  polarity ${signed(answer.polarity)}, ${answer.tokens} tokens${answer.truncated ? ", shortened" : ""}`)),
      ...Object.entries(answer.scores).map(([label, score]) => bar(label, score, percent(score), `${label} ${label === answer.label ? "chosen" : ""}`)));
    $("try-answer").append(bars, words);
    $("try-curl").hidden = false;
    $("try-curl").querySelector("pre").textContent = `${curl("/v1/sentiment", { inputs: item })}\n\n${curl("/v1/explain/sentiment", explain)}`;
    const explained = await post("/v1/explain/sentiment", explain);
    if (own !== newest) return;
    words.append(...explanation(text, explained.results[0]));
    say($("try-status"), `Explained in ${Math.round(explained.timings_ms.explain)} ms.`);
  } catch (error) {
    if (own === newest) complain($("try-status"), error);
  }
}

/** The text with its words coloured, what the colours mean, and the heaviest words with their figures. */
function explanation(text, found) {
  const characters = Array.from(text); // the API counts code points
  const slice = (start, end) => characters.slice(start, end).join("");
  // Where no word weighs anything to speak of, the heaviest is not to look as if it did.
  const peak = Math.max(...found.words.map((word) => Math.abs(word.weight)), found.signed ? 0.05 : 1e-9);
  const shown = el("p", { class: "words", dir: "auto" });
  const marks = new Map();
  let place = found.read.start;
  if (place > 0) shown.append(el("span", { class: "unread", title: "not read" }, slice(0, place)));
  for (const word of found.words) {
    const kind = word.named ? "named" : !found.signed ? "seen" : word.weight < 0 ? "against" : "for";
    const title = word.named ? "the entity that is asked about" : `${word.text}: ${signed(word.weight)}`;
    const mark = el("span", { class: kind, title }, slice(word.start, word.end));
    mark.style.setProperty("--share", Math.abs(word.weight) / peak);
    marks.set(word, mark);
    shown.append(slice(place, word.start), mark);
    place = word.end;
  }
  shown.append(slice(place, found.read.end));
  if (found.read.end < characters.length) shown.append(el("span", { class: "unread", title: "not read" }, slice(found.read.end)));
  const heaviest = found.words.filter((word) => !word.named).sort((a, b) => Math.abs(b.weight) - Math.abs(a.weight)).slice(0, HEAVIEST);
  const rows = heaviest.map((word) => {
    const row = bar(word.text, Math.abs(word.weight) / peak, signed(word.weight), !found.signed ? "seen" : word.weight < 0 ? "against" : "for");
    row.addEventListener("pointerenter", () => marks.get(word).classList.add("here"));
    row.addEventListener("pointerleave", () => marks.get(word).classList.remove("here"));
    return row;
  });
  return [
    el("h2", {}, found.signed ? `What speaks for ${found.target}` : "Where the model looks"), shown,
    el("p", { class: "note legend" }, ...legend(found)), ...rows,
  ];
}

function legend(found) {
  const entry = (kind, sentence) => el("span", {}, el("span", { class: `swatch ${kind}` }), sentence);
  if (!found.signed) return [entry("seen", "attention, which speaks neither for nor against a label")];
  return [entry("for", `for ${found.target}`), entry("against", "against it"),
    el("span", {}, `points of its probability, by ${found.method}`)];
}

function addTurn(speaker, text) {
  const chooser = el("select", { "aria-label": "Speaker" }, el("option", { value: "customer" }, "customer"), el("option", { value: "agent" }, "agent"));
  chooser.value = speaker;
  const input = el("input", { "aria-label": "What is said", dir: "auto", placeholder: "what is said" });
  input.value = text;
  const row = el("li", {}, chooser, input);
  row.append(el("button", { type: "button", "aria-label": "Remove this turn", click: () => { if ($("turns").children.length > 1) row.remove(); } }, "×"));
  $("turns").append(row);
  return input;
}

const turns = () => Array.from($("turns").children, (row) => ({ speaker: row.querySelector("select").value, text: row.querySelector("input").value }));
const lastSpeaker = () => turns().at(-1)?.speaker;

async function askIntent() {
  const own = ++newest;
  const labels = $("labels").value;
  const request = { inputs: { turns: turns() }, top_k: 10, ...(labels ? { labels } : {}) };
  share(current());
  clear("Asking …");
  $("try-curl").hidden = false;
  $("try-curl").querySelector("pre").textContent = curl("/v1/intent", request);
  try {
    const answer = await post("/v1/intent", request);
    if (own !== newest) return;
    const found = answer.results[0];
    say($("try-status"), `Of ${answer.labels}: ${found.turns_used} turns read, ${found.turns_dropped} left out, ${found.tokens} tokens.`);
    $("try-answer").append(
      el("p", { class: "verdict" }, el("strong", {}, found.out_of_scope ? "out of scope" : found.intent)),
      bar("out of scope", found.out_of_scope_score, percent(found.out_of_scope_score), `wide ${found.out_of_scope ? "against" : "neutral"}`),
      el("h2", {}, "Ranking"),
      ...found.ranking.map((one, place) => bar(one.intent, one.confidence, percent(one.confidence), `wide ${place === 0 ? "chosen" : ""}`)));
  } catch (error) {
    if (own === newest) complain($("try-status"), error);
  }
}

async function copy(event) {
  const text = $("try-curl").querySelector("pre").textContent;
  try {
    await navigator.clipboard.writeText(text);
    event.target.textContent = "Copied";
  } catch { // no clipboard without https
    getSelection().selectAllChildren($("try-curl").querySelector("pre"));
    event.target.textContent = "Selected: press Ctrl + C";
  }
  setTimeout(() => { event.target.textContent = "Copy"; }, 2000);
}
