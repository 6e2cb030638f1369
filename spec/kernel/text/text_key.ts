/** Keys of kernel text: equal for equal text, so that kernels of equal layers are created once. */

import { exactJson } from "../exact_json.ts";
import { type Hole, KernelText } from "./text.ts";
import type { Stmt } from "../tree.ts";

/** The key of a text. */
export function textKey({ template, holes }: KernelText): string {
  return `${template.number}(${holes.map(holeKey).join()})`;
}

function holeKey(hole: Hole): string {
  if (hole instanceof KernelText) return textKey(hole);
  if (typeof hole === "string") return `'${hole}`;
  if (typeof hole !== "object") return Object.is(hole, -0) ? "-0" : `${hole}`;
  return Array.isArray(hole)
    ? `[${(hole as readonly (Stmt | KernelText)[]).map(partKey).join()}]`
    : exactJson(hole);
}

/** Key of a statement of a tree, or of text. */
function partKey(part: Stmt | KernelText): string {
  return part instanceof KernelText ? textKey(part) : exactJson(part);
}
