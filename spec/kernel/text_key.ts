/** A key of kernel text: equal where the text says the same, so that the kernels of equal layers are made once. */

import { exactJson } from "./exact_json.ts";
import { type Hole, KernelText, type Template } from "./text.ts";
import type { Stmt } from "./tree.ts";

const numbers = new WeakMap<Template, number>();
let templates = 0;

/** The number of a template: one for each place in the source. */
function numberOf(template: Template): number {
  let number = numbers.get(template);
  if (number === undefined) {
    number = templates++;
    numbers.set(template, number);
  }
  return number;
}

/** The key of a text. */
export function textKey({ template, holes }: KernelText): string {
  return `${numberOf(template)}(${holes.map(holeKey).join()})`;
}

function holeKey(hole: Hole): string {
  if (hole instanceof KernelText) return textKey(hole);
  if (typeof hole === "string") return `'${hole}`;
  if (typeof hole !== "object") return Object.is(hole, -0) ? "-0" : `${hole}`;
  return Array.isArray(hole)
    ? `[${(hole as readonly (Stmt | KernelText)[]).map(partKey).join()}]`
    : exactJson(hole);
}

/** A statement of a tree, or text. */
function partKey(part: Stmt | KernelText): string {
  return part instanceof KernelText ? textKey(part) : exactJson(part);
}
