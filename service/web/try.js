// One text: its answer, the attribution of its words, and the requests for both. Dialogues and histories have separate
// files.

import { curl, post } from "./api.js";
import * as dialogue from "./dialogue.js";
import { $, bar, complain, el, languageNote, percent, runOn, say, signed } from "./dom.js";
import { methodsOf, offerMethods } from "./methods.js";
import * as recommend from "./recommend.js";
import { textAttribution } from "./words.js";

const EXAMPLES = [
  ["Shares of Acme plunge after profit warning", ""],
  ["Stock A soars while B plunges", "B"],
  ["The room was lovely, but the staff ignored us all week", ""],
  ["公司净利润同比增长50%，股价涨停", ""],
  ["平安银行：净利润大增；永吉股份：股东拟减持", "永吉股份"],
];

let share = () => {};
let newest = 0;

export function start(served, shared) {
  share = shared;
  const sentiment = served.find((model) => model.task === "sentiment");
  const intent = served.find((model) => model.task === "intent");
  for (const label of sentiment?.labels ?? []) $("target").append(el("option", { value: label }, label));
  for (const [text, entity] of EXAMPLES) {
    const shown = text.length > 28 ? `${text.slice(0, 26)}…` : text;
    const title = entity ? `${text} (entity: ${entity})` : text;
    $("examples").append(el("button", { type: "button", title, click: () => example(text, entity) }, shown));
  }
  runOn($("sentiment-form"), askSentiment);
  for (const id of ["method", "target"]) $(id).addEventListener("change", () => { if ($("text").value) askSentiment(); });
  $("try-curl").querySelector(".copy").addEventListener("click", copy);
  dialogue.start(intent, shared);
  recommend.start(served.find((model) => model.task === "recommend"), shared);
  const offered = { sentiment: "sentiment", intent: "intent", replies: "intent", recommend: "recommend" };
  for (const [task, model] of Object.entries(offered)) option(task).hidden = !served.some((candidate) => candidate.task === model);
  const tasks = Object.keys(offered).filter((task) => !option(task).hidden);
  $("task").hidden = tasks.length < 2;
  if (tasks.length && !sentiment) choose(tasks[0]);
  for (const radio of document.querySelectorAll("input[name=task]")) radio.addEventListener("change", () => choose(radio.value));
}

/** Offers the methods of the OpenAPI document. Attention of a text has a separate tab. */
export function offer(openapi) {
  offerMethods($("method"), methodsOf(openapi, "/v1/explain/sentiment").filter((method) => method !== "attention"));
  offerMethods($("history-method"), methodsOf(openapi, "/v1/explain/recommend"));
}

function example(text, entity) {
  $("text").value = text;
  $("entity").value = entity;
  askSentiment();
}

const option = (task) => document.querySelector(`input[name=task][value=${task}]`).parentElement;

function choose(task) {
  for (const radio of document.querySelectorAll("input[name=task]")) radio.checked = radio.value === task;
  $("sentiment-form").hidden = task !== "sentiment";
  $("dialogue-form").hidden = !["intent", "replies"].includes(task);
  $("recommend-form").hidden = task !== "recommend";
  dialogue.choose(task);
  newest += 1; // requests under way belong to the other task
  dialogue.forget();
  recommend.forget();
  clear("");
}

function clear(sentence) {
  say($("try-status"), sentence);
  $("try-answer").replaceChildren();
  $("try-curl").hidden = true;
}

export function current() {
  if (!$("dialogue-form").hidden) return dialogue.current();
  if (!$("recommend-form").hidden) return recommend.current();
  const method = $("method").value;
  return { text: $("text").value, entity: $("entity").value.trim(), method: method === "auto" ? "" : method, target: $("target").value };
}

export function restore(fragment) {
  const task = fragment.get("task");
  if (["intent", "replies", "recommend"].includes(task) && !option(task).hidden) {
    choose(task);
    (task === "recommend" ? recommend : dialogue).restore(fragment);
    return;
  }
  $("text").value = fragment.get("text") ?? "";
  $("entity").value = fragment.get("entity") ?? "";
  for (const [id, fallback] of [["method", "auto"], ["target", ""]]) {
    $(id).value = fragment.get(id) ?? fallback;
    if ($(id).selectedIndex < 0) $(id).value = fallback;
  }
  if ($("text").value) askSentiment();
}

async function askSentiment() {
  const serial = ++newest;
  const { text, entity, method, target } = current();
  const item = entity ? { text, entity } : { text };
  const explain = { inputs: item, method: method || "auto", ...(target ? { target } : {}) };
  share(current());
  clear("Running …");
  const bars = el("div");
  const words = el("div");
  try {
    const answer = (await post("/v1/sentiment", { inputs: item })).results[0];
    if (serial !== newest) return;
    if (answer.found === false) {
      $("try-answer").append(el("p", { class: "verdict" }, el("strong", {}, entity), " is not found in the text."), ...languageNote(answer));
      $("try-curl").hidden = false;
      $("try-curl").querySelector("pre").textContent = curl("/v1/sentiment", { inputs: item });
      say($("try-status"), "The entity is not found in the text, so there is no answer.");
      return;
    }
    const about = entity ? ` for ${entity}` : "";
    bars.append(
      el("p", { class: "verdict" }, el("strong", {}, answer.label), about, el("span", { class: "note" },
        `  polarity ${signed(answer.polarity)}, ${answer.tokens} tokens${answer.truncated ? ", truncated" : ""}`)),
      ...languageNote(answer),
      ...Object.entries(answer.scores).map(([label, score]) => bar(label, score, percent(score), `${label} ${label === answer.label ? "chosen" : ""}`)));
    say($("try-status"), "Explaining …");
    $("try-answer").append(bars, words);
    $("try-curl").hidden = false;
    $("try-curl").querySelector("pre").textContent = `${curl("/v1/sentiment", { inputs: item })}\n\n${curl("/v1/explain/sentiment", explain)}`;
    const explained = await post("/v1/explain/sentiment", explain);
    if (serial !== newest) return;
    words.append(...textAttribution(text, explained.results[0]));
    say($("try-status"), `Explained in ${Math.round(explained.timings_ms.explain)} ms.`);
  } catch (error) {
    if (serial === newest) complain($("try-status"), error);
  }
}

async function copy(event) {
  const text = $("try-curl").querySelector("pre").textContent;
  try {
    await navigator.clipboard.writeText(text);
    event.target.textContent = "Copied";
  } catch { // without https there is no clipboard
    getSelection().selectAllChildren($("try-curl").querySelector("pre"));
    event.target.textContent = "Selected: press Ctrl + C";
  }
  setTimeout(() => { event.target.textContent = "Copy"; }, 2000);
}
