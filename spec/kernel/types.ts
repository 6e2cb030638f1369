/** Types of the operations of a kernel tree: what operators and functions take, and what they give. */

import type { BinaryOp, CallName, ScalarType } from "./tree.ts";

const COMPARE: ReadonlySet<BinaryOp> = new Set(["lt", "le", "gt", "ge"]);
const BITS: ReadonlySet<BinaryOp> = new Set(["and", "or", "xor"]);

/** Types of the arguments of each function; all return f32. */
export const ARGUMENTS: { readonly [F in CallName]: readonly ScalarType[] } = {
  fma: ["f32", "f32", "f32"],
  exp: ["f32"],
  log: ["f32"],
  sqrt: ["f32"],
  rsqrt: ["f32"],
  sin: ["f32"],
  cos: ["f32"],
  tanh: ["f32"],
  abs: ["f32"],
  floor: ["f32"],
  ceil: ["f32"],
  trunc: ["f32"],
  round: ["f32"],
  sign: ["f32"],
  pow: ["f32", "f32"],
  roundF16: ["f32"],
  unpackF16Lo: ["u32"],
  unpackF16Hi: ["u32"],
};

/** The result type of a binary operation, or undefined where the operands do not fit. */
export function binaryType(
  fn: BinaryOp,
  a: ScalarType,
  b: ScalarType,
): ScalarType | undefined {
  const integer = a === "u32" || a === "i32";
  if (fn === "shl" || fn === "shr") {
    return integer && b === "u32" ? a : undefined;
  }
  if (a !== b) return undefined;
  if (fn === "land" || fn === "lor") return a === "bool" ? "bool" : undefined;
  if (fn === "eq" || fn === "ne") return "bool";
  if (COMPARE.has(fn)) return a === "bool" ? undefined : "bool";
  if (BITS.has(fn)) return integer ? a : undefined;
  return a === "bool" ? undefined : a;
}

/** Whether a constant has a value of its type. */
export function fitsType(type: ScalarType, value: number | boolean): boolean {
  if (type === "bool") return typeof value === "boolean";
  if (typeof value !== "number" || Number.isNaN(value)) return false;
  if (type === "f32") return true;
  return Number.isInteger(value) &&
    (type === "u32"
      ? value >= 0 && value <= 0xffffffff
      : value >= -0x80000000 && value <= 0x7fffffff);
}
