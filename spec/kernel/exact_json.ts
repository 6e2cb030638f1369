/** JSON of the inputs of kernels as a key: equal only for equal kernels. */

import type { Kernel } from "./tree.ts";

/** Numbers that JSON does not distinguish: 0 and -0 of f32, and non-finite ones. */
const INEXACT = /(?<!"type":"u32",)"value":0[,}]|null/;

/** JSON in which -0 and infinities differ from other constants. */
export function exactJson(value: unknown): string {
  const json = JSON.stringify(value);
  // A replacer is called for every value and rarely needed: most zeros are positive.
  return INEXACT.test(json) && isInexact(value)
    ? JSON.stringify(value, exactly)
    : json;
}

const texts = new WeakMap<object, string>();

/** The JSON of an immutable value, such as the body of a kernel, cached. */
export function cachedJson(value: object): string {
  const text = texts.get(value) ?? exactJson(value);
  texts.set(value, text);
  return text;
}

const kernels = new WeakMap<Kernel, string>();

/** A text that only equal kernels share, cached. Its largest part is the JSON of the body, which plans look up too. */
export function kernelText(kernel: Kernel): string {
  const known = kernels.get(kernel);
  if (known !== undefined) return known;
  const text = kernelHead(kernel) + cachedJson(kernel.body);
  kernels.set(kernel, text);
  return text;
}

/** The part of `kernelText` before the body. */
export function kernelHead(
  { name, workgroupSize, bindings, shared }: Kernel,
): string {
  return exactJson([name, workgroupSize, bindings, shared]);
}

/** Whether a value contains a number that JSON cannot represent. */
function isInexact(value: unknown): boolean {
  if (typeof value === "number") return exactly("", value) !== value;
  if (typeof value !== "object" || value === null) return false;
  for (const key in value) {
    if (isInexact((value as { readonly [key: string]: unknown })[key])) {
      return true;
    }
  }
  return false;
}

/** A replacer for JSON, which has neither -0 nor infinities. */
function exactly(_key: string, value: unknown): unknown {
  if (Object.is(value, -0)) return "-0";
  return value === Infinity || value === -Infinity ? String(value) : value;
}
