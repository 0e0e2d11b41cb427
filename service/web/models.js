// What is served, how it was measured, and how it is doing: rates and latencies from /metrics.

import { get } from "./api.js";
import { $, colour, complain, el, say, sized } from "./dom.js";

const EVERY_MS = 2000;
const OVER = 15; // scrapes that latencies look back on
const KEPT = 90;

let timer = null;
let scrapes = []; // {at, counts: Map(route → {requests, refused, failed, buckets: Map(le → count)})}
let rates = [];

export function start(served) {
  $("bundles").append(...served.map(bundle));
}

export function visible(shown) {
  clearInterval(timer);
  timer = null;
  if (!shown) return;
  scrapes = [];
  rates = [];
  scrape();
  timer = setInterval(scrape, EVERY_MS);
}

function bundle(model) {
  const facts = {
    version: model.version, task: model.task, labels: model.labels.join(", "), languages: model.languages.join(", "), base: model.base,
    digest: model.digest, limits: `${model.limits.max_tokens} tokens a text, ${model.limits.max_inputs} texts and ${model.limits.max_body_bytes} bytes a request`,
    "label sets": Object.entries(model.label_sets).map(([name, labels]) => `${name} (${labels.length})`).join(", "),
    "reply sets": model.reply_sets.join(", "),
  };
  return el("section", { class: "bundle" }, el("h3", {}, model.name),
    el("dl", {}, ...Object.entries(facts).filter(([, value]) => value).flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])),
    ...(model.metrics.length ? [figures(model.metrics)] : []));
}

/** A row for each data set, a column for each figure. */
function figures(metrics) {
  const names = [...new Set(metrics.map((one) => one.name))];
  const sets = [...new Set(metrics.map((one) => `${one.dataset}\n${one.language}`))].map((key) => key.split("\n"));
  const value = (dataset, language, name) => metrics.find((one) => one.dataset === dataset && one.language === language && one.name === name)?.value.toFixed(3) ?? "";
  const head = el("tr", {}, el("th", { scope: "col" }, "data set"), el("th", { scope: "col" }, "language"), ...names.map((name) => el("th", { scope: "col", class: "number" }, name)));
  const rows = sets.map(([dataset, language]) => el("tr", {}, el("td", {}, dataset), el("td", {}, language), ...names.map((name) => el("td", { class: "number" }, value(dataset, language, name)))));
  const commands = [...new Set(metrics.map((one) => one.command))].join("; ");
  return el("div", { class: "scroll" }, el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows)), el("p", { class: "note" }, "Measured by ", el("code", {}, commands)));
}

async function scrape() {
  try {
    const text = await (await get("/metrics")).text();
    scrapes = [...scrapes, { at: performance.now() / 1000, counts: counted(text) }].slice(-OVER - 1);
    show();
  } catch (error) {
    complain($("live-note"), error);
  }
}

/** The requests of each route, those for this page and for its figures left out. */
function counted(text) {
  const found = new Map();
  for (const line of text.split("\n")) {
    const sample = /^heed_request(s_total|_seconds_bucket)\{(.*)\} (\S+)$/.exec(line);
    if (!sample) continue;
    const labels = Object.fromEntries(Array.from(sample[2].matchAll(/(\w+)="([^"]*)"/g), (match) => [match[1], match[2]]));
    if (!labels.route.startsWith("/v1/") || labels.route === "/v1/models") continue;
    const own = found.get(labels.route) ?? { requests: 0, refused: 0, failed: 0, buckets: new Map() };
    found.set(labels.route, own);
    const value = Number(sample[3]);
    if (sample[1] === "_seconds_bucket") own.buckets.set(labels.le === "+Inf" ? Infinity : Number(labels.le), value);
    else {
      own.requests += value;
      if (labels.status.startsWith("4")) own.refused += value;
      if (labels.status.startsWith("5")) own.failed += value;
    }
  }
  return found;
}

function show() {
  const [first, last] = [scrapes[0], scrapes.at(-1)];
  const before = scrapes.at(-2);
  if (!before) {
    say($("live-note"), "Counting …");
    return;
  }
  say($("live-note"), "From /metrics, over all replicas of this node; latencies are estimated from its histogram, over the last 30 s.");
  const total = (scrape) => [...scrape.counts.values()].reduce((sum, own) => sum + own.requests, 0);
  rates = [...rates, Math.max(0, total(last) - total(before)) / (last.at - before.at)].slice(-KEPT);
  drawRates();
  const seconds = last.at - first.at;
  const rows = [...last.counts].sort().map(([route, own]) => {
    const earlier = first.counts.get(route);
    const rate = (name) => Math.max(0, own[name] - (earlier?.[name] ?? 0)) / seconds;
    const took = [...own.buckets].map(([le, count]) => [le, count - (earlier?.buckets.get(le) ?? 0)]).sort((a, b) => a[0] - b[0]);
    return el("tr", {}, ...[route, rate("requests").toFixed(1), quantile(took, 0.5), quantile(took, 0.99), rate("refused").toFixed(1), rate("failed").toFixed(1)].map((value) => el("td", {}, value)));
  });
  $("live").tBodies[0].replaceChildren(...(rows.length ? rows : [el("tr", {}, el("td", { colspan: 6 }, "No requests yet."))]));
}

/** In milliseconds, between the bounds of the bucket that it falls into. */
function quantile(buckets, share) {
  const all = buckets.at(-1)?.[1] ?? 0;
  if (!all) return "–";
  let [low, below] = [0, 0];
  for (const [le, count] of buckets) {
    if (count >= all * share) return le === Infinity ? `> ${low * 1000}` : (1000 * (low + (le - low) * (all * share - below) / (count - below || 1))).toFixed(1);
    [low, below] = [le, count];
  }
  return "–";
}

function drawRates() {
  const canvas = $("rate");
  const { clientWidth: width, clientHeight: height } = canvas;
  const context = sized(canvas, width, height);
  const peak = Math.max(...rates, 1);
  const step = width / (KEPT - 1);
  context.fillStyle = colour("--soft");
  context.font = "12px system-ui, sans-serif";
  context.fillText(`${rates.at(-1).toFixed(1)} requests/s (axis to ${peak.toFixed(1)})`, 8, 16);
  context.strokeStyle = colour("--accent");
  context.lineWidth = 2;
  context.beginPath();
  rates.forEach((rate, place) => context.lineTo(width - (rates.length - 1 - place) * step, height - 6 - (rate / peak) * (height - 32)));
  context.stroke();
}
