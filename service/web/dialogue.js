// A dialogue: its intents or the ranking of its replies, and the attribution of its turns and words.

import { curl, post } from "./api.js";
import { $, bar, complain, el, languageNote, percent, runOn, say } from "./dom.js";
import { dialogueAttribution } from "./words.js";

const SAMPLE = ["Thank you and goodbye.", "Do you have a price range in mind?", "Your account balance is 800 in credit."];

let share = () => {};
let newest = 0;

export function start(intent, shared) {
  share = shared;
  $("label-set").append(el("option", { value: "" }, "the service's default"));
  for (const [name, labels] of Object.entries(intent?.label_sets ?? {}))
    $("label-set").append(el("option", { value: name }, `${name} (${labels.length} intents)`));
  $("reply-set").append(el("option", { value: "" }, "the candidates below"), ...(intent?.reply_sets ?? []).map((name) => el("option", { value: name }, name)));
  $("candidates").value = SAMPLE.join("\n");
  $("reply-set").addEventListener("change", () => { $("candidates-field").hidden = $("reply-set").value !== ""; });
  runOn($("dialogue-form"), ask);
  $("add-turn").addEventListener("click", () => addTurn(turns().at(-1)?.speaker === "customer" ? "agent" : "customer", "").focus());
  addTurn("customer", "");
}

const task = () => document.querySelector("input[name=task]:checked").value;
const turns = () => Array.from($("turns").children, (row) => ({ speaker: row.querySelector("select").value, text: row.querySelector("input").value }));

/** Ignores the answers of requests under way. */
export function forget() {
  newest += 1;
}

export function choose(name) {
  $("label-set-field").hidden = name !== "intent";
  $("replies-fields").hidden = name !== "replies";
}

export function current() {
  const content = JSON.stringify(turns().map((turn) => [turn.speaker, turn.text]));
  if (task() === "intent") return { task: "intent", label_set: $("label-set").value, turns: content };
  const replySet = $("reply-set").value;
  return { task: "replies", set: replySet, candidates: replySet ? "" : $("candidates").value, turns: content };
}

export function restore(fragment) {
  $("label-set").value = fragment.get("label_set") ?? "";
  $("reply-set").value = fragment.get("set") ?? "";
  for (const id of ["label-set", "reply-set"]) if ($(id).selectedIndex < 0) $(id).selectedIndex = 0;
  $("candidates-field").hidden = $("reply-set").value !== "";
  if (fragment.get("candidates")) $("candidates").value = fragment.get("candidates");
  const saved = parsed(fragment.get("turns"));
  if (!saved.length) return;
  $("turns").replaceChildren();
  for (const [speaker, text] of saved) addTurn(speaker, text);
  ask();
}

/** Returns the turns of a fragment, which may have been written by anybody. */
function parsed(turnsText) {
  try {
    const content = JSON.parse(turnsText ?? "[]");
    return Array.isArray(content) ? content.filter((turn) => Array.isArray(turn) && ["customer", "agent"].includes(turn[0]) && typeof turn[1] === "string") : [];
  } catch {
    return [];
  }
}

function addTurn(speaker, text) {
  const chooser = el("select", { "aria-label": "Speaker" }, el("option", { value: "customer" }, "customer"), el("option", { value: "agent" }, "agent"));
  chooser.value = speaker;
  const input = el("input", { "aria-label": "Text of the turn", dir: "auto", placeholder: "text of the turn" });
  input.value = text;
  const row = el("li", {}, chooser, input);
  row.append(el("button", { type: "button", "aria-label": "Remove this turn", click: () => { if ($("turns").children.length > 1) row.remove(); } }, "×"));
  $("turns").append(row);
  return input;
}

async function ask() {
  const serial = ++newest;
  share(current());
  say($("try-status"), "Running …");
  $("try-answer").replaceChildren();
  $("try-curl").hidden = true;
  try {
    await (task() === "intent" ? askIntent(serial) : askReplies(serial));
  } catch (error) {
    if (serial === newest) complain($("try-status"), error);
  }
}

function shown(...requests) {
  $("try-curl").hidden = false;
  $("try-curl").querySelector("pre").textContent = requests.map(([path, body]) => curl(path, body)).join("\n\n");
}

/** Returns a bar with a button that explains it. */
function explained(name, score, kind, explain) {
  const row = bar(name, score, percent(score), `wide why ${kind}`);
  row.append(el("button", { type: "button", "aria-label": `Why ${name}`, click: explain }, "why"));
  return row;
}

async function askIntent(serial) {
  const labelSet = $("label-set").value;
  const dialogue = turns();
  const request = { inputs: { turns: dialogue }, top_k: 10, ...(labelSet ? { label_set: labelSet } : {}) };
  const answer = await post("/v1/intent", request);
  if (serial !== newest) return;
  const result = answer.results[0];
  const counts = `Label set ${answer.label_set}: ${result.turns_used} turns read, ${result.turns_dropped} dropped, ${result.tokens} tokens.`;
  const words = el("div");
  const why = (target) => {
    const explain = { inputs: { turns: dialogue }, label_set: answer.label_set, target };
    shown(["/v1/intent", request], ["/v1/explain/intent", explain]);
    return showAttribution("/v1/explain/intent", explain, counts, words, (result) => dialogueAttribution(dialogue, result, result.target, "confidence"));
  };
  $("try-answer").append(
    el("p", { class: "verdict" }, el("strong", {}, result.out_of_scope ? "out of scope" : result.intent)),
    ...languageNote(result),
    bar("out of scope", result.out_of_scope_score, percent(result.out_of_scope_score), `wide ${result.out_of_scope ? "against" : "neutral"}`),
    el("h2", {}, "Ranking"),
    ...result.ranking.map((entry, rank) => explained(entry.intent, entry.confidence, rank === 0 ? "chosen" : "", () => why(entry.intent))), words);
  await why(result.ranking[0].intent);
}

async function askReplies(serial) {
  const replySet = $("reply-set").value;
  const candidates = [...new Set($("candidates").value.split("\n").map((line) => line.trim()).filter(Boolean))];
  const dialogue = turns();
  const request = { turns: dialogue, ...(replySet ? { reply_set: replySet } : { candidates }), top_k: 10 };
  const answer = await post("/v1/replies", request);
  if (serial !== newest) return;
  const counts = `${answer.turns_used} turns read, ${answer.turns_dropped} dropped.`;
  const words = el("div");
  const why = (target) => {
    const explain = { turns: dialogue, ...(replySet ? { reply_set: replySet } : { candidates }), target };
    shown(["/v1/replies", request], ["/v1/explain/replies", explain]);
    return showAttribution("/v1/explain/replies", explain, counts, words, (result) => dialogueAttribution(dialogue, result, `“${result.target.text}”`, "score"));
  };
  const best = answer.results[0];
  $("try-answer").append(
    el("p", { class: "verdict" }, answer.no_good_reply ? "No good reply. The best is " : "", el("strong", {}, best.text)),
    ...languageNote(answer),
    ...answer.results.map((reply, rank) => explained(reply.text, reply.score, rank === 0 ? "chosen" : "", () => why(reply.index))), words);
  await why(best.index);
}

async function showAttribution(path, request, counts, target, show) {
  const serial = ++newest;
  say($("try-status"), `${counts} Explaining …`);
  try {
    const answer = await post(path, request);
    if (serial !== newest) return;
    target.replaceChildren(...show(answer.results[0]));
    say($("try-status"), `${counts} Explained in ${Math.round(answer.timings_ms.explain)} ms.`);
  } catch (error) {
    if (serial === newest) complain($("try-status"), error);
  }
}
