// Texts with their words coloured by what they weigh, what the colours mean, and the heaviest with their figures.

import { bar, el, signed } from "./dom.js";

const HEAVIEST = 8;

const kindOf = (word, found) => (word.is_entity ? "named" : !found.signed ? "seen" : word.weight < 0 ? "against" : "for");

/** Where no word weighs anything to speak of, the heaviest is not to look as if it did. */
const peakOf = (words, found) => Math.max(...words.map((word) => Math.abs(word.weight)), found.signed ? 0.05 : 1e-9);

/** A text's words as marks in it, each put into `marks` too. */
function coloured(text, { words, read }, found, peak, marks) {
  const characters = Array.from(text); // the API counts code points
  const slice = (start, end) => characters.slice(start, end).join("");
  const shown = el("p", { class: "words", dir: "auto" });
  let place = read.start;
  if (place > 0) shown.append(el("span", { class: "unread", title: "not read" }, slice(0, place)));
  for (const word of words) {
    const title = word.is_entity ? "the entity that is asked about" : `${word.text}: ${signed(word.weight)}`;
    const mark = el("span", { class: kindOf(word, found), title }, slice(word.start, word.end));
    mark.style.setProperty("--share", Math.abs(word.weight) / peak);
    marks.set(word, mark);
    shown.append(slice(place, word.start), mark);
    place = word.end;
  }
  shown.append(slice(place, read.end));
  if (read.end < characters.length) shown.append(el("span", { class: "unread", title: "not read" }, slice(read.end)));
  return shown;
}

function heaviest(words, found, peak, marks) {
  const first = words.filter((word) => !word.is_entity).sort((a, b) => Math.abs(b.weight) - Math.abs(a.weight)).slice(0, HEAVIEST);
  return first.map((word) => {
    const row = bar(word.text, Math.abs(word.weight) / peak, signed(word.weight), kindOf(word, found));
    row.addEventListener("pointerenter", () => marks.get(word).classList.add("here"));
    row.addEventListener("pointerleave", () => marks.get(word).classList.remove("here"));
    return row;
  });
}

export function legend(found, target, unit) {
  const entry = (kind, sentence) => el("span", {}, el("span", { class: `swatch ${kind}` }), sentence);
  const entries = found.signed
    ? [entry("for", `for ${target}`), entry("against", "against it"), el("span", {}, `${unit}, by ${found.method}`)]
    : [entry("seen", "attention, which speaks neither for nor against a label")];
  return el("p", { class: "note legend" }, ...entries);
}

const heading = (found, target) => el("h2", {}, found.signed ? `What speaks for ${target}` : "Where the model looks");

export function ofText(text, found) {
  const [peak, marks] = [peakOf(found.words, found), new Map()];
  return [heading(found, found.target), coloured(text, found, found, peak, marks),
    legend(found, found.target, "points of its probability"), ...heaviest(found.words, found, peak, marks)];
}

/** Of the turns as they were sent: those that were read, each with its weight. */
export function ofDialogue(turns, found, target, unit) {
  const words = found.turns.flatMap((turn) => turn.words);
  const [peak, marks] = [peakOf(words, found), new Map()];
  const most = Math.max(...found.turns.map((turn) => Math.abs(turn.weight ?? 0)), 0.05);
  const rows = found.turns.map((turn) => {
    const { speaker, text } = turns[turn.turn];
    const kind = !found.signed ? "seen" : turn.weight < 0 ? "against" : "for";
    const weight = turn.weight === null ? [] : [bar(speaker, Math.abs(turn.weight) / most, signed(turn.weight), kind)];
    return el("li", { class: speaker }, ...(weight.length ? weight : [el("span", {}, speaker)]), coloured(text, turn, found, peak, marks));
  });
  return [heading(found, target), el("ol", { class: "said" }, ...rows), legend(found, target, `points of its ${unit}`), ...heaviest(words, found, peak, marks)];
}
