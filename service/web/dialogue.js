// A dialogue: its intents or the replies that fit it, and which turns and words speak for the one that is chosen.

import { curl, post } from "./api.js";
import { $, bar, complain, el, percent, say } from "./dom.js";
import { ofDialogue } from "./words.js";

const SAMPLE = ["Thank you and goodbye.", "Do you have a price range in mind?", "Your account balance is 800 in credit."];

let share = () => {};
let newest = 0;

export function start(intent, shared) {
  share = shared;
  $("label-set").append(el("option", { value: "" }, "the service's own choice"));
  for (const [name, labels] of Object.entries(intent?.label_sets ?? {}))
    $("label-set").append(el("option", { value: name }, `${name} (${labels.length} intents)`));
  $("reply-set").append(el("option", { value: "" }, "those below"), ...(intent?.reply_sets ?? []).map((name) => el("option", { value: name }, name)));
  $("candidates").value = SAMPLE.join("\n");
  $("reply-set").addEventListener("change", () => { $("candidates-field").hidden = $("reply-set").value !== ""; });
  $("dialogue-form").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
  $("add-turn").addEventListener("click", () => addTurn(turns().at(-1)?.speaker === "customer" ? "agent" : "customer", "").focus());
  addTurn("customer", "");
}

const task = () => document.querySelector("input[name=task]:checked").value;
const turns = () => Array.from($("turns").children, (row) => ({ speaker: row.querySelector("select").value, text: row.querySelector("input").value }));

/** What is still under way belongs to another question. */
export function forget() {
  newest += 1;
}

export function choose(name) {
  $("label-set-field").hidden = name !== "intent";
  $("replies-fields").hidden = name !== "replies";
}

export function current() {
  const said = JSON.stringify(turns().map((turn) => [turn.speaker, turn.text]));
  if (task() === "intent") return { task: "intent", label_set: $("label-set").value, turns: said };
  const named = $("reply-set").value;
  return { task: "replies", set: named, candidates: named ? "" : $("candidates").value, turns: said };
}

export function restore(given) {
  $("label-set").value = given.get("label_set") ?? "";
  $("reply-set").value = given.get("set") ?? "";
  for (const id of ["label-set", "reply-set"]) if ($(id).selectedIndex < 0) $(id).selectedIndex = 0;
  $("candidates-field").hidden = $("reply-set").value !== "";
  if (given.get("candidates")) $("candidates").value = given.get("candidates");
  const read = parsed(given.get("turns"));
  if (!read.length) return;
  $("turns").replaceChildren();
  for (const [speaker, text] of read) addTurn(speaker, text);
  ask();
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

async function ask() {
  const own = ++newest;
  share(current());
  say($("try-status"), "Asking …");
  $("try-answer").replaceChildren();
  $("try-curl").hidden = true;
  try {
    await (task() === "intent" ? askIntent(own) : askReplies(own));
  } catch (error) {
    if (own === newest) complain($("try-status"), error);
  }
}

function shown(...requests) {
  $("try-curl").hidden = false;
  $("try-curl").querySelector("pre").textContent = requests.map(([path, body]) => curl(path, body)).join("\n\n");
}

/** A bar with a button that explains it. */
function explained(name, score, kind, explain) {
  const row = bar(name, score, percent(score), `wide why ${kind}`);
  row.append(el("button", { type: "button", "aria-label": `Why ${name}`, click: explain }, "why"));
  return row;
}

async function askIntent(own) {
  const labelSet = $("label-set").value;
  const said = turns();
  const request = { inputs: { turns: said }, top_k: 10, ...(labelSet ? { label_set: labelSet } : {}) };
  const answer = await post("/v1/intent", request);
  if (own !== newest) return;
  const found = answer.results[0];
  const counted = `Of ${answer.label_set}: ${found.turns_used} turns read, ${found.turns_dropped} left out, ${found.tokens} tokens.`;
  const words = el("div");
  const why = (target) => {
    const explain = { inputs: { turns: said }, label_set: answer.label_set, target };
    shown(["/v1/intent", request], ["/v1/explain/intent", explain]);
    return weigh("/v1/explain/intent", explain, counted, words, (one) => ofDialogue(said, one, one.target, "confidence"));
  };
  $("try-answer").append(
    el("p", { class: "verdict" }, el("strong", {}, found.out_of_scope ? "out of scope" : found.intent)),
    bar("out of scope", found.out_of_scope_score, percent(found.out_of_scope_score), `wide ${found.out_of_scope ? "against" : "neutral"}`),
    el("h2", {}, "Ranking"),
    ...found.ranking.map((one, place) => explained(one.intent, one.confidence, place === 0 ? "chosen" : "", () => why(one.intent))), words);
  await why(found.ranking[0].intent);
}

async function askReplies(own) {
  const named = $("reply-set").value;
  const candidates = [...new Set($("candidates").value.split("\n").map((line) => line.trim()).filter(Boolean))];
  const said = turns();
  const request = { turns: said, ...(named ? { reply_set: named } : { candidates }), top_k: 10 };
  const answer = await post("/v1/replies", request);
  if (own !== newest) return;
  const counted = `${answer.turns_used} turns read, ${answer.turns_dropped} left out.`;
  const words = el("div");
  const why = (target) => {
    const explain = { turns: said, ...(named ? { reply_set: named } : { candidates }), target };
    shown(["/v1/replies", request], ["/v1/explain/replies", explain]);
    return weigh("/v1/explain/replies", explain, counted, words, (one) => ofDialogue(said, one, `“${one.target.text}”`, "score"));
  };
  const best = answer.results[0];
  $("try-answer").append(
    el("p", { class: "verdict" }, answer.no_good_reply ? "No good reply; the best is " : "", el("strong", {}, best.text)),
    ...answer.results.map((one, place) => explained(one.text, one.score, place === 0 ? "chosen" : "", () => why(one.index))), words);
  await why(best.index);
}

async function weigh(path, request, counted, into, show) {
  const own = ++newest;
  say($("try-status"), `${counted} Weighing words …`);
  try {
    const answer = await post(path, request);
    if (own !== newest) return;
    into.replaceChildren(...show(answer.results[0]));
    say($("try-status"), `${counted} Explained in ${Math.round(answer.timings_ms.explain)} ms.`);
  } catch (error) {
    if (own === newest) complain($("try-status"), error);
  }
}
