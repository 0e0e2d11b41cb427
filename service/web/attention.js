// The attention of one layer: a large map of one head or of their mean, and all heads beside each other.

import { post } from "./api.js";
import { $, colour, complain, el, say, sized } from "./dom.js";

const LABELS = 96; // pixels for the names of tokens
let share = () => {};
let newest = 0;
let maps = null; // {tokens, heads, weights: [head][from][to]}
let cell = null; // [from, to]
let size = 0;

export function start(_, shared) {
  share = shared;
  $("attention-text").value = "Shares of Acme plunge after profit warning";
  $("attention-form").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
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

export function restore(given) {
  if (!given.get("text")) return;
  $("attention-text").value = given.get("text");
  $("attention-entity").value = given.get("entity") ?? "";
  if (given.get("layer") === "rollout") $("layer").value = "rollout";
  for (const id of ["layer", "head"]) if (/^\d{1,2}$/.test(given.get(id) ?? "")) offer(id, Number(given.get(id)));
  ask();
}

/** Chooses a number, which is put in where the model's own are not known yet. */
function offer(id, number) {
  if (![...$(id).options].some((option) => option.value === String(number))) $(id).append(el("option", { value: number }, number));
  $(id).value = String(number);
}

function fill(id, count, before) {
  const chosen = $(id).value;
  $(id).replaceChildren(...before, ...Array.from({ length: count }, (_, number) => el("option", { value: number }, number)));
  $(id).value = chosen;
  if ($(id).selectedIndex < 0) $(id).selectedIndex = 0;
}

async function ask() {
  const own = ++newest;
  const { text, entity, layer } = current();
  share(current());
  say($("attention-status"), "Asking …");
  try {
    const answer = await post("/v1/explain/sentiment", {
      inputs: entity ? { text, entity } : { text }, method: "attention",
      ...(layer === "rollout" ? { reduce: "rollout" } : { layers: [Number(layer)], heads: "all" }),
    });
    if (own !== newest) return;
    const found = answer.results[0].attention;
    maps = { tokens: found.tokens, heads: found.heads, weights: found.weights[0], reduced: found.reduce !== null };
    fill("layer", found.model_layers, [el("option", { value: "rollout" }, "rollout, all layers")]);
    fill("head", found.reduce ? 0 : found.model_heads, [el("option", { value: "mean" }, "mean of all")]);
    cell = null;
    $("attention-answer").hidden = false;
    const shown = found.reduce ? "Followed through all layers" : `Layer ${found.layers[0]}`;
    say($("attention-status"), `${shown} (there are 0 to ${found.model_layers - 1}), ${found.model_heads} heads, ${found.tokens.length} tokens.`);
    draw();
  } catch (error) {
    if (own !== newest) return;
    $("attention-answer").hidden = true;
    complain($("attention-status"), error);
  }
}

function chosen() {
  const head = $("head").value;
  if (head !== "mean") return maps.weights[Number(head)];
  const sum = maps.tokens.map(() => maps.tokens.map(() => 0));
  for (const one of maps.weights) one.forEach((row, from) => row.forEach((weight, to) => { sum[from][to] += weight / maps.weights.length; }));
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

/** Squares as dark as their weight, the darkest one being the map's largest. */
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
  for (let place = 0; place < count; place += 1) {
    const middle = LABELS + (place + 0.5) * size;
    context.fillStyle = colour(cell?.[0] === place ? "--accent" : "--text");
    context.textAlign = "right";
    context.fillText(readable(maps.tokens[place]), LABELS - 6, middle, LABELS - 8);
    context.fillStyle = colour(cell?.[1] === place ? "--accent" : "--text");
    context.save();
    context.translate(middle, LABELS - 6);
    context.rotate(-Math.PI / 2);
    context.textAlign = "left";
    context.fillText(readable(maps.tokens[place]), 0, 0, LABELS - 8);
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

/** The text itself: what the token that is pointed at takes from each of the others. */
function pieces(weights) {
  const row = cell ? weights[cell[0]] : null;
  const peak = row ? Math.max(...row, 1e-9) : 1;
  $("pieces").replaceChildren(...maps.tokens.map((token, place) => {
    const mark = el("span", { class: row ? `to ${place === cell[0] ? "from" : ""}` : "", pointerenter: () => point([place, place]) }, readable(token));
    if (row) mark.style.setProperty("--share", row[place] / peak);
    return mark;
  }));
  $("cell").textContent = cell
    ? `${readable(maps.tokens[cell[0]])} takes ${(weights[cell[0]][cell[1]] * 100).toFixed(1)} % from ${readable(maps.tokens[cell[1]])}`
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
  const place = (pixels) => Math.floor((pixels - LABELS) / size);
  const found = [place(event.offsetY), place(event.offsetX)];
  return found.every((one) => one >= 0 && one < maps.tokens.length) ? found : null;
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
  const held = (place) => Math.min(last, Math.max(0, place));
  point(cell ? [held(cell[0] + down), held(cell[1] + right)] : [0, 0]);
}
