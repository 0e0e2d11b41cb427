// The served models and their quality, and the live rates and latencies from /metrics.

import { get } from "./api.js";
import { $, colour, complain, el, say, sized } from "./dom.js";

const INTERVAL_MS = 2000;
const WINDOW = 15; // scrapes that latencies cover
const MAX_RATES = 90;

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
  timer = setInterval(scrape, INTERVAL_MS);
}

function bundle(model) {
  const facts = {
    version: model.version, task: model.task, labels: model.labels.join(", "), languages: model.languages.join(", "), base: model.base,
    digest: model.digest, limits: `${model.limits.max_tokens} tokens per text, ${model.limits.max_inputs} texts and ${model.limits.max_body_bytes} bytes per request`,
    "label sets": Object.entries(model.label_sets).map(([name, labels]) => `${name} (${labels.length})`).join(", "),
    "reply sets": model.reply_sets.join(", "),
  };
  return el("section", { class: "bundle" }, el("h3", {}, model.name),
    el("dl", {}, ...Object.entries(facts).filter(([, value]) => value).flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])),
    ...(model.metrics.length ? [figures(model.metrics)] : []));
}

/** Returns a table with a row per dataset and a column per metric. */
function figures(metrics) {
  const names = [...new Set(metrics.map((metric) => metric.name))];
  const sets = [...new Set(metrics.map((metric) => `${metric.dataset}\n${metric.language}`))].map((key) => key.split("\n"));
  const value = (dataset, language, name) => metrics.find((metric) => metric.dataset === dataset && metric.language === language && metric.name === name)?.value.toFixed(3) ?? "";
  const head = el("tr", {}, el("th", { scope: "col" }, "dataset"), el("th", { scope: "col" }, "language"), ...names.map((name) => el("th", { scope: "col", class: "number" }, name)));
  const rows = sets.map(([dataset, language]) => el("tr", {}, el("td", {}, dataset), el("td", {}, language), ...names.map((name) => el("td", { class: "number" }, value(dataset, language, name)))));
  const commands = [...new Set(metrics.map((metric) => metric.command))].join("; ");
  return el("div", { class: "scroll" }, el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows)), el("p", { class: "note" }, "Measured with ", el("code", {}, commands)));
}

async function scrape() {
  try {
    const text = await (await get("/metrics")).text();
    scrapes = [...scrapes, { at: performance.now() / 1000, counts: counted(text) }].slice(-WINDOW - 1);
    show();
  } catch (error) {
    complain($("live-note"), error);
  }
}

/** Returns the requests of each route, without those that this page sends. */
function counted(text) {
  const routes = new Map();
  for (const line of text.split("\n")) {
    const sample = /^heed_request(s_total|_seconds_bucket)\{(.*)\} (\S+)$/.exec(line);
    if (!sample) continue;
    const labels = Object.fromEntries(Array.from(sample[2].matchAll(/(\w+)="([^"]*)"/g), (match) => [match[1], match[2]]));
    if (!labels.route.startsWith("/v1/") || labels.route === "/v1/models") continue;
    const route = routes.get(labels.route) ?? { requests: 0, refused: 0, failed: 0, buckets: new Map() };
    routes.set(labels.route, route);
    const value = Number(sample[3]);
    if (sample[1] === "_seconds_bucket") route.buckets.set(labels.le === "+Inf" ? Infinity : Number(labels.le), value);
    else {
      route.requests += value;
      if (labels.status.startsWith("4")) route.refused += value;
      if (labels.status.startsWith("5")) route.failed += value;
    }
  }
  return routes;
}

function show() {
  const [first, last] = [scrapes[0], scrapes.at(-1)];
  const before = scrapes.at(-2);
  if (!before) {
    say($("live-note"), "Counting …");
    return;
  }
  say($("live-note"), "Requests to all replicas of this node, read from /metrics. Latencies are estimates from its histogram, over the last 30 s.");
  const total = (scrape) => [...scrape.counts.values()].reduce((sum, route) => sum + route.requests, 0);
  rates = [...rates, Math.max(0, total(last) - total(before)) / (last.at - before.at)].slice(-MAX_RATES);
  drawRates();
  const seconds = last.at - first.at;
  const rows = [...last.counts].sort().map(([route, latest]) => {
    const earlier = first.counts.get(route);
    const rate = (name) => Math.max(0, latest[name] - (earlier?.[name] ?? 0)) / seconds;
    const buckets = [...latest.buckets].map(([le, count]) => [le, count - (earlier?.buckets.get(le) ?? 0)]).sort((a, b) => a[0] - b[0]);
    return el("tr", {}, ...[route, rate("requests").toFixed(1), quantile(buckets, 0.5), quantile(buckets, 0.99), rate("refused").toFixed(1), rate("failed").toFixed(1)].map((value) => el("td", {}, value)));
  });
  $("live").tBodies[0].replaceChildren(...(rows.length ? rows : [el("tr", {}, el("td", { colspan: 6 }, "No requests yet."))]));
}

/** Returns a quantile in milliseconds, interpolated between the bounds of its bucket. */
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
  const step = width / (MAX_RATES - 1);
  context.fillStyle = colour("--soft");
  context.font = "12px system-ui, sans-serif";
  context.fillText(`${rates.at(-1).toFixed(1)} requests/s (axis to ${peak.toFixed(1)})`, 8, 16);
  context.strokeStyle = colour("--accent");
  context.lineWidth = 2;
  context.beginPath();
  rates.forEach((rate, index) => context.lineTo(width - (rates.length - 1 - index) * step, height - 6 - (rate / peak) * (height - 32)));
  context.stroke();
}
