// A file of texts, sent in parts: the progress, a table, the distribution of labels, and the results as a file.

import { post } from "./api.js";
import { $, bar, complain, el, percent, say } from "./dom.js";
import { parseCsv, parseJsonl, writeCsv } from "./files.js";

const PART = 32;
const MAX_SHOWN = 200;
const MAX_TEXTS = 100_000;
const MAX_TRIES = 20;

let labels = [];
let rows = []; // {text, entity?, id?}
let results = [];
let stopped = null;

export function start(served) {
  const model = served.find((candidate) => candidate.task === "sentiment");
  labels = model?.labels ?? [];
  $("file").addEventListener("change", () => { if ($("file").files[0]) take($("file").files[0]); });
  const drop = $("drop");
  for (const kind of ["dragenter", "dragover"]) drop.addEventListener(kind, (event) => { event.preventDefault(); drop.classList.add("over"); });
  for (const kind of ["dragleave", "drop"]) drop.addEventListener(kind, () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => { event.preventDefault(); if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]); });
  $("stop").addEventListener("click", () => stopped?.abort());
  $("save-csv").addEventListener("click", () => save("heed.csv", "text/csv", asCsv()));
  $("save-jsonl").addEventListener("click", () => save("heed.jsonl", "application/jsonl", asJsonl()));
}

async function take(file) {
  stopped?.abort();
  const controller = stopped = new AbortController();
  try {
    rows = read(file.name, await file.text());
  } catch (error) {
    complain($("batch-status"), error);
    return;
  }
  results = [];
  $("rows").hidden = false;
  $("rows").tBodies[0].replaceChildren();
  for (const id of ["save-csv", "save-jsonl"]) $(id).hidden = true;
  for (const id of ["stop", "progress"]) $(id).hidden = false;
  try {
    for (let start = 0; start < rows.length; start += PART) {
      await answer(rows.slice(start, start + PART), controller.signal);
      if (controller !== stopped) return;
      progress();
    }
  } catch (error) {
    if (controller !== stopped) return;
    if (error.name === "AbortError") say($("batch-status"), `Stopped after ${results.length} of ${rows.length}.`);
    else complain($("batch-status"), error);
  }
  $("stop").hidden = true;
  for (const id of ["save-csv", "save-jsonl"]) $(id).hidden = results.length === 0;
}

function read(name, text) {
  const texts = (/\.csv$/i.test(name) ? parseCsv : /\.(jsonl|ndjson)$/i.test(name) ? parseJsonl : (all) => all.split(/\r?\n/).map((line) => ({ text: line })))(text)
    .filter((row) => row.text.trim());
  if (!texts.length) throw new Error("This file has no texts.");
  if (texts.length > MAX_TEXTS) throw new Error(`This file has ${texts.length} texts. The console accepts at most ${MAX_TEXTS}.`);
  return texts;
}

/** Sends one part. It waits and tries again if the service is busy, and sends halves if an item is refused. */
async function answer(part, signal) {
  const inputs = part.map(({ text, entity }) => (entity ? { text, entity } : { text }));
  for (let attempt = 1; ; attempt += 1) {
    try {
      results.push(...(await post("/v1/sentiment", { inputs }, signal)).results);
      return;
    } catch (error) {
      if ([413, 422].includes(error.status) && part.length > 1) {
        const middle = Math.ceil(part.length / 2);
        await answer(part.slice(0, middle), signal);
        await answer(part.slice(middle), signal);
        return;
      }
      if ([413, 422].includes(error.status)) {
        results.push({ error: { code: error.code, detail: error.message } });
        return;
      }
      if (![429, 503].includes(error.status) || attempt === MAX_TRIES) throw error;
      say($("batch-status"), `The service is busy. Continuing in ${error.retryAfterS} s.`);
      await new Promise((done) => setTimeout(done, error.retryAfterS * 1000));
      signal.throwIfAborted();
    }
  }
}

function progress() {
  $("progress").max = rows.length;
  $("progress").value = results.length;
  const failed = results.filter((result) => result.error).length;
  const unnamed = results.filter((result) => result.found === false).length;
  say($("batch-status"), `${results.length} of ${rows.length} done${failed ? `, ${failed} failed` : ""}${unnamed ? `, ${unnamed} without their entity` : ""}.${rows.length > MAX_SHOWN ? ` The first ${MAX_SHOWN} are shown.` : ""}`);
  const body = $("rows").tBodies[0];
  for (let index = body.rows.length; index < Math.min(results.length, MAX_SHOWN); index += 1) body.append(line(rows[index], results[index]));
  const answered = results.length - failed - unnamed || 1;
  $("distribution").replaceChildren(...labels.map((label) => {
    const count = results.filter((result) => result.label === label).length;
    return bar(`${label} (${count})`, count / answered, percent(count / answered), `${label} wide`);
  }));
}

function line(row, result) {
  const polarity = result.polarity?.toFixed(3) ?? "";
  const label = result.found === false ? "not found in the text" : result.label;
  const language = result.unsupported_language ? [el("span", { class: "note language" }, " unsupported language")] : [];
  return el("tr", {}, el("td", { dir: "auto" }, row.text), el("td", {}, row.entity ?? ""),
    el("td", {}, result.error ? result.error.detail : label, ...language), el("td", { class: "number" }, polarity));
}

function asCsv() {
  const head = ["id", "text", "entity", "label", ...labels, "polarity", "truncated", "found", "unsupported_language", "error"];
  return writeCsv([head, ...results.map((result, index) => [
    rows[index].id ?? "", rows[index].text, rows[index].entity ?? "", result.label ?? "",
    ...labels.map((label) => result.scores?.[label] ?? ""), result.polarity ?? "", result.truncated ?? "", result.found ?? "",
    result.unsupported_language ?? "", result.error?.detail ?? "",
  ])]);
}

const asJsonl = () => results.map((result, index) => `${JSON.stringify({ ...rows[index], ...result, id: rows[index].id ?? null })}\n`).join("");

function save(name, type, content) {
  const address = URL.createObjectURL(new Blob([content], { type }));
  el("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}
