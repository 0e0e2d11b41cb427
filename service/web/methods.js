// The attribution methods, as the OpenAPI document lists them for each route.

import { el } from "./dom.js";

const SLOW = new Set(["shapley", "integrated_gradients"]);

/** Returns the methods that the route's requests may name; none if the document lacks the route. */
export function methodsOf(openapi, path) {
  const schema = openapi?.paths?.[path]?.post?.requestBody?.content?.["application/json"]?.schema;
  const request = openapi?.components?.schemas?.[schema?.$ref?.split("/").at(-1)];
  return request?.properties?.method?.enum ?? [];
}

export const methodName = (method) => method.replace("_sided", "-sided").replaceAll("_", " ");

/** Offers the methods in a select, which keeps its choice. Without methods it also keeps its static options. */
export function offerMethods(select, methods) {
  if (!methods.length) return;
  const chosen = select.value;
  select.replaceChildren(...methods.map((method) => el("option", { value: method }, `${methodName(method)}${SLOW.has(method) ? " (slow)" : ""}`)));
  select.value = chosen;
}
