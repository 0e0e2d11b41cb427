// A file of texts, asked in parts: progress, a table, how the labels are spread, and all of it as a file again.

import { post } from "./api.js";
import { $, bar, complain, el, percent, say } from "./dom.js";
import { parseCsv, parseJsonl, writeCsv } from "./files.js";

const PART = 32;
const SHOWN = 200;
const MOST = 100_000;
const TRIES = 20;

let labels = [];
let rows = []; // {text, entity?, id?}
let results = [];
let stopped = null;

export function start(served) {
  const model = served.find((one) => one.task === "sentiment");
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
  const own = stopped = new AbortController();
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
    for (let place = 0; place < rows.length; place += PART) {
      await answer(rows.slice(place, place + PART), own.signal);
      if (own !== stopped) return;
      progress();
    }
  } catch (error) {
    if (own !== stopped) return;
    if (error.name === "AbortError") say($("batch-status"), `Stopped after ${results.length} of ${rows.length}.`);
    else complain($("batch-status"), error);
  }
  $("stop").hidden = true;
  for (const id of ["save-csv", "save-jsonl"]) $(id).hidden = results.length === 0;
}

function read(name, text) {
  const found = (/\.csv$/i.test(name) ? parseCsv : /\.(jsonl|ndjson)$/i.test(name) ? parseJsonl : (all) => all.split(/\r?\n/).map((line) => ({ text: line })))(text)
    .filter((row) => row.text.trim());
  if (!found.length) throw new Error("There is no text in this file.");
  if (found.length > MOST) throw new Error(`There are ${found.length} texts in this file; at most ${MOST} are taken here.`);
  return found;
}

/** Asks for one part: again after a while where the service says so, in halves where something in it is refused. */
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
      if (![429, 503].includes(error.status) || attempt === TRIES) throw error;
      say($("batch-status"), `The service is busy; going on in ${error.retryAfterS} s.`);
      await new Promise((done) => setTimeout(done, error.retryAfterS * 1000));
      signal.throwIfAborted();
    }
  }
}

function progress() {
  $("progress").max = rows.length;
  $("progress").value = results.length;
  const failed = results.filter((one) => one.error).length;
  say($("batch-status"), `${results.length} of ${rows.length} answered${failed ? `, ${failed} could not be` : ""}${rows.length > SHOWN ? `; the first ${SHOWN} are shown` : ""}.`);
  const body = $("rows").tBodies[0];
  for (let place = body.rows.length; place < Math.min(results.length, SHOWN); place += 1) body.append(line(rows[place], results[place]));
  const answered = results.length - failed || 1;
  $("distribution").replaceChildren(...labels.map((label) => {
    const count = results.filter((one) => one.label === label).length;
    return bar(`${label} (${count})`, count / answered, percent(count / answered), `${label} wide`);
  }));
}

function line(row, result) {
  const polarity = result.error ? "" : result.polarity.toFixed(3);
  return el("tr", {}, el("td", { dir: "auto" }, row.text), el("td", {}, row.entity ?? ""),
    el("td", {}, result.error ? result.error.detail : result.label), el("td", { class: "number" }, polarity));
}

function asCsv() {
  const head = ["id", "text", "entity", "label", ...labels, "polarity", "truncated", "error"];
  return writeCsv([head, ...results.map((one, place) => [
    rows[place].id ?? "", rows[place].text, rows[place].entity ?? "", one.label ?? "",
    ...labels.map((label) => one.scores?.[label] ?? ""), one.polarity ?? "", one.truncated ?? "", one.error?.detail ?? "",
  ])]);
}

const asJsonl = () => results.map((one, place) => `${JSON.stringify({ ...rows[place], ...one, id: rows[place].id ?? null })}\n`).join("");

function save(name, type, content) {
  const address = URL.createObjectURL(new Blob([content], { type }));
  el("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}
