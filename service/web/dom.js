// Elements from plain values. Texts become text nodes: no module of the console parses markup.

export const $ = (id) => document.getElementById(id);

/** Returns an element with attributes (functions are listeners) and children (elements or text). */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value !== undefined && value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

/** Returns a named bar for a share from 0 to 1. As a button it can be chosen. */
export function bar(name, share, figure, kind = "", tag = "div") {
  const fill = el("span", { class: "fill" });
  fill.style.setProperty("--share", Math.min(1, Math.max(0, share)));
  return el(tag, { class: `bar ${kind}`, type: tag === "button" && tag }, el("span", { class: "name" }, name), el("span", { class: "track" }, fill),
    el("span", { class: "figure" }, figure));
}

export const percent = (share) => `${(share * 100).toFixed(1)} %`;
export const signed = (weight) => `${weight < 0 ? "−" : "+"}${Math.abs(weight).toFixed(3)}`;

/** Returns a note for a result about a text in a language that the models do not know, and nothing for any other. */
export const languageNote = (result, text = "This") => (result.unsupported_language
  ? [el("p", { class: "note language" }, `${text} is neither English nor Chinese: the model does not know the language.`)] : []);

/** Calls `run` when the form is submitted, or when Ctrl + Enter is pressed in any of its fields. */
export function runOn(form, run) {
  form.addEventListener("submit", (event) => { event.preventDefault(); run(); });
  form.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey) || event.target.closest("button")) return;
    event.preventDefault(); // a browser may submit the form as well
    run();
  });
}

/** Shows an error: the refusal of a request, or any other. */
export function complain(status, error) {
  status.classList.add("error");
  status.textContent = error.message;
}

export function say(status, sentence) {
  status.classList.remove("error");
  status.textContent = sentence;
}

/** Resizes a canvas to CSS pixels at the resolution of the screen, and returns its context. */
export function sized(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  return context;
}

export const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
