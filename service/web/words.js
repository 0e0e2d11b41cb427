// Texts with their words coloured by attribution, a legend, and bars for the words with the largest weights.

import { bar, el, signed } from "./dom.js";
import { methodName } from "./methods.js";

const TOP_WORDS = 8;

const kindOf = (word, result) => (word.is_entity ? "entity" : !result.signed ? "seen" : word.weight < 0 ? "against" : "for");

/** Returns the weight of the darkest colour. Its minimum keeps negligible weights pale. */
const peakOf = (words, result) => Math.max(...words.map((word) => Math.abs(word.weight)), result.signed ? 0.05 : 1e-9);

/** Returns the text with its words as marks, and adds each mark to `marks`. */
function coloured(text, { words, read_span: readSpan }, result, peak, marks) {
  const characters = Array.from(text); // the API counts code points
  const slice = (start, end) => characters.slice(start, end).join("");
  const shown = el("p", { class: "words", dir: "auto" });
  let position = readSpan.start;
  if (position > 0) shown.append(el("span", { class: "unread", title: "not read" }, slice(0, position)));
  for (const word of words) {
    const title = word.is_entity ? "the entity" : `${word.text}: ${signed(word.weight)}`;
    const mark = el("span", { class: kindOf(word, result), title }, slice(word.start, word.end));
    mark.style.setProperty("--share", Math.abs(word.weight) / peak);
    marks.set(word, mark);
    shown.append(slice(position, word.start), mark);
    position = word.end;
  }
  shown.append(slice(position, readSpan.end));
  if (readSpan.end < characters.length) shown.append(el("span", { class: "unread", title: "not read" }, slice(readSpan.end)));
  return shown;
}

function topWords(words, result, peak, marks) {
  const top = words.filter((word) => !word.is_entity).sort((a, b) => Math.abs(b.weight) - Math.abs(a.weight)).slice(0, TOP_WORDS);
  return top.map((word) => {
    const row = bar(word.text, Math.abs(word.weight) / peak, signed(word.weight), kindOf(word, result));
    row.addEventListener("pointerenter", () => marks.get(word).classList.add("here"));
    row.addEventListener("pointerleave", () => marks.get(word).classList.remove("here"));
    return row;
  });
}

export function legend(result, target, unit) {
  const entry = (kind, sentence) => el("span", {}, el("span", { class: `swatch ${kind}` }), sentence);
  const entries = result.signed
    ? [entry("for", `for ${target}`), entry("against", "against it"), el("span", {}, `${unit}, by ${methodName(result.method)}`)]
    : [entry("seen", "attention, which counts neither for nor against a label")];
  return el("p", { class: "note legend" }, ...entries);
}

const heading = (result, target) => el("h2", {}, result.signed ? `Attribution for ${target}` : "Attention");

/** Returns elements that show the attribution of a text. */
export function textAttribution(text, result) {
  const [peak, marks] = [peakOf(result.words, result), new Map()];
  return [heading(result, result.target), coloured(text, result, result, peak, marks),
    legend(result, result.target, "contribution to the probability"), ...topWords(result.words, result, peak, marks)];
}

/** Returns elements that show the attribution of a dialogue: the turns that were read, each with its weight. */
export function dialogueAttribution(turns, result, target, unit) {
  const words = result.turns.flatMap((turn) => turn.words);
  const [peak, marks] = [peakOf(words, result), new Map()];
  const peakTurn = Math.max(...result.turns.map((turn) => Math.abs(turn.weight ?? 0)), 0.05);
  const rows = result.turns.map((turn) => {
    const { speaker, text } = turns[turn.turn];
    const kind = !result.signed ? "seen" : turn.weight < 0 ? "against" : "for";
    const weight = turn.weight === null ? [] : [bar(speaker, Math.abs(turn.weight) / peakTurn, signed(turn.weight), kind)];
    return el("li", { class: speaker }, ...(weight.length ? weight : [el("span", {}, speaker)]), coloured(text, turn, result, peak, marks));
  });
  return [heading(result, target), el("ol", { class: "dialogue" }, ...rows), legend(result, target, `contribution to the ${unit}`), ...topWords(words, result, peak, marks)];
}
