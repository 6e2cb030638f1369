/** A key of kernel text: equal where the text says the same, so that layers alike are parsed once. */

import { type Hole, KernelText, type Template } from "./text.ts";

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

/** The key of a text, or undefined where statements of a tree are in it: those are as large as what they are compared for. */
export function textKey(text: KernelText): string | undefined {
  let key = `${numberOf(text.template)}(`;
  for (const hole of text.holes) {
    const part = holeKey(hole);
    if (part === undefined) return undefined;
    key += `${part},`;
  }
  return `${key})`;
}

function holeKey(hole: Hole): string | undefined {
  if (hole instanceof KernelText) return textKey(hole);
  if (typeof hole === "string") return `'${hole}`;
  if (typeof hole !== "object") return String(exactly("", hole));
  if ("type" in hole) {
    return JSON.stringify(hole, exactly);
  }
  if (!Array.isArray(hole)) return undefined;
  let key = "[";
  for (const part of hole as readonly unknown[]) {
    const of = part instanceof KernelText ? textKey(part) : undefined;
    if (of === undefined) return undefined;
    key += `${of},`;
  }
  return `${key}]`;
}

/** A replacer for JSON, which has neither -0 nor infinities. */
export function exactly(_key: string, value: unknown): unknown {
  if (Object.is(value, -0)) return "-0";
  return value === Infinity || value === -Infinity ? String(value) : value;
}
