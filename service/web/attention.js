// The attention of one layer: a large map of one head or of the mean, and small maps of all heads.

import { post } from "./api.js";
import { $, colour, complain, el, runOn, say, sized } from "./dom.js";

const LABELS = 96; // pixels for the labels of tokens
let share = () => {};
let newest = 0;
let maps = null; // {tokens, heads, weights: [head][from][to]}
let cell = null; // [from, to]
let size = 0;

export function start(_, shared) {
  share = shared;
  $("attention-text").value = "Shares of Acme plunge after profit warning";
  runOn($("attention-form"), ask);
  $("layer").addEventListener("change", ask);
  $("head").addEventListener("change", () => { share(current()); draw(); });
  $("map").addEventListener("pointermove", (event) => point(at(event)));
  $("map").addEventListener("pointerdown", (event) => point(at(event)));
  $("map").addEventListener("pointerleave", () => point(null));
  $("map").addEventListener("keydown", onKey);
  $("pieces").addEventListener("pointerleave", () => point(null));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => maps && draw());
  window.addEventListener("resize", () => maps && !$("panel-attention").hidden && draw());
}

export const current = () => ({
  text: $("attention-text").value, entity: $("attention-entity").value.trim(), layer: $("layer").value, head: $("head").value,
});

export function restore(fragment) {
  if (!fragment.get("text")) return;
  $("attention-text").value = fragment.get("text");
  $("attention-entity").value = fragment.get("entity") ?? "";
  if (fragment.get("layer") === "rollout") $("layer").value = "rollout";
  for (const id of ["layer", "head"]) if (/^\d{1,2}$/.test(fragment.get(id) ?? "")) offer(id, Number(fragment.get(id)));
  ask();
}

/** Chooses a number, and adds it as an option if the model's numbers are not known yet. */
function offer(id, number) {
  if (![...$(id).options].some((option) => option.value === String(number))) $(id).append(el("option", { value: number }, number));
  $(id).value = String(number);
}

function fill(id, count, leading) {
  const chosen = $(id).value;
  $(id).replaceChildren(...leading, ...Array.from({ length: count }, (_, number) => el("option", { value: number }, number)));
  $(id).value = chosen;
  if ($(id).selectedIndex < 0) $(id).selectedIndex = 0;
}

async function ask() {
  const serial = ++newest;
  const { text, entity, layer } = current();
  share(current());
  say($("attention-status"), "Running …");
  try {
    const answer = await post("/v1/explain/sentiment", {
      inputs: entity ? { text, entity } : { text }, method: "attention",
      ...(layer === "rollout" ? { reduce: "rollout" } : { layers: [Number(layer)], heads: "all" }),
    });
    if (serial !== newest) return;
    const attention = answer.results[0].attention;
    maps = { tokens: attention.tokens, heads: attention.heads, weights: attention.weights[0], reduced: attention.reduce !== null };
    fill("layer", attention.model_layers, [el("option", { value: "rollout" }, "rollout, all layers")]);
    fill("head", attention.reduce ? 0 : attention.model_heads, [el("option", { value: "mean" }, "mean of all heads")]);
    cell = null;
    $("attention-answer").hidden = false;
    const shown = attention.reduce ? "Rollout through all layers" : `Layer ${attention.layers[0]}`;
    say($("attention-status"), `${shown} (of 0 to ${attention.model_layers - 1}), ${attention.model_heads} heads, ${attention.tokens.length} tokens.`);
    draw();
  } catch (error) {
    if (serial !== newest) return;
    $("attention-answer").hidden = true;
    complain($("attention-status"), error);
  }
}

function chosen() {
  const head = $("head").value;
  if (head !== "mean") return maps.weights[Number(head)];
  const sum = maps.tokens.map(() => maps.tokens.map(() => 0));
  for (const head of maps.weights) head.forEach((row, from) => row.forEach((weight, to) => { sum[from][to] += weight / maps.weights.length; }));
  return sum;
}

const readable = (token) => token.replaceAll("▁", " ").trim() || "␣";

function draw() {
  const weights = chosen();
  const count = maps.tokens.length;
  const room = Math.max(200, $("attention-answer").clientWidth - LABELS - 4);
  size = Math.max(6, Math.min(34, Math.floor(room / count)));
  const side = LABELS + size * count + 2;
  const map = $("map");
  map.style.width = map.style.height = `${side}px`;
  const context = sized(map, side, side);
  paint(context, weights, LABELS, size);
  names(context, count);
  outline(context);
  map.setAttribute("aria-label", `Attention map of ${count} by ${count} tokens`);
  pieces(weights);
  thumbnails();
}

/** Paints squares as dark as their weights. The largest weight of the map is the darkest. */
function paint(context, weights, from, step) {
  const peak = Math.max(...weights.flat(), 1e-9);
  context.fillStyle = colour("--raised");
  context.fillRect(from, from, step * weights.length, step * weights.length);
  context.fillStyle = colour("--seen");
  weights.forEach((row, y) => row.forEach((weight, x) => {
    context.globalAlpha = Math.sqrt(weight / peak);
    context.fillRect(from + x * step, from + y * step, step - (step > 8 ? 1 : 0), step - (step > 8 ? 1 : 0));
  }));
  context.globalAlpha = 1;
}

function names(context, count) {
  const height = Math.min(13, size);
  if (height < 6) return;
  context.font = `${height}px system-ui, "Noto Sans CJK SC", sans-serif`;
  context.textBaseline = "middle";
  for (let index = 0; index < count; index += 1) {
    const middle = LABELS + (index + 0.5) * size;
    context.fillStyle = colour(cell?.[0] === index ? "--accent" : "--text");
    context.textAlign = "right";
    context.fillText(readable(maps.tokens[index]), LABELS - 6, middle, LABELS - 8);
    context.fillStyle = colour(cell?.[1] === index ? "--accent" : "--text");
    context.save();
    context.translate(middle, LABELS - 6);
    context.rotate(-Math.PI / 2);
    context.textAlign = "left";
    context.fillText(readable(maps.tokens[index]), 0, 0, LABELS - 8);
    context.restore();
  }
}

function outline(context) {
  if (!cell) return;
  const length = size * maps.tokens.length;
  context.strokeStyle = colour("--accent");
  context.lineWidth = 1;
  context.strokeRect(LABELS - 0.5, LABELS + cell[0] * size - 0.5, length, size);
  context.strokeRect(LABELS + cell[1] * size - 0.5, LABELS - 0.5, size, length);
  context.lineWidth = 3;
  context.strokeRect(LABELS + cell[1] * size - 0.5, LABELS + cell[0] * size - 0.5, size, size);
}

/** Shows the text, coloured by the attention of the selected token. */
function pieces(weights) {
  const row = cell ? weights[cell[0]] : null;
  const peak = row ? Math.max(...row, 1e-9) : 1;
  $("pieces").replaceChildren(...maps.tokens.map((token, index) => {
    const mark = el("span", { class: row ? `to ${index === cell[0] ? "from" : ""}` : "", pointerenter: () => point([index, index]) }, readable(token));
    if (row) mark.style.setProperty("--share", row[index] / peak);
    return mark;
  }));
  $("cell").textContent = cell
    ? `${readable(maps.tokens[cell[0]])}: ${(weights[cell[0]][cell[1]] * 100).toFixed(1)} % of the attention is on ${readable(maps.tokens[cell[1]])}`
    : "\u00a0";
}

function thumbnails() {
  $("all-heads").hidden = maps.reduced;
  $("heads").replaceChildren(...maps.weights.map((weights, head) => {
    const canvas = el("canvas", { width: weights.length, height: weights.length, "aria-hidden": "true" });
    paint(canvas.getContext("2d"), weights, 0, 1);
    const pressed = $("head").value === String(head);
    return el("button", { type: "button", "aria-pressed": String(pressed), click: () => pick(head) }, canvas, `head ${head}`);
  }));
}

function pick(head) {
  $("head").value = String(head);
  share(current());
  draw();
  $("heads").children[head].focus();
}

function at(event) {
  const indexAt = (pixels) => Math.floor((pixels - LABELS) / size);
  const target = [indexAt(event.offsetY), indexAt(event.offsetX)];
  return target.every((index) => index >= 0 && index < maps.tokens.length) ? target : null;
}

function point(to) {
  if (String(to) === String(cell)) return;
  cell = to;
  const weights = chosen();
  const context = $("map").getContext("2d");
  context.clearRect(0, 0, $("map").width, $("map").height);
  paint(context, weights, LABELS, size);
  names(context, maps.tokens.length);
  outline(context);
  pieces(weights);
}

function onKey(event) {
  const [down, right] = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key] ?? [0, 0];
  if (event.key === "Escape") point(null);
  if (!down && !right) return;
  event.preventDefault();
  const last = maps.tokens.length - 1;
  const clamp = (index) => Math.min(last, Math.max(0, index));
  point(cell ? [clamp(cell[0] + down), clamp(cell[1] + right)] : [0, 0]);
}
