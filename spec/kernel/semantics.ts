/**
 * Operators and functions of kernels: operand types and exact results. Values are numbers; a bool is 0 or 1. Verifier,
 * parser, constant folding, cost model and evaluators use these tables.
 */

import { roundEven, roundF16, widenF16 } from "../half.ts";
import type { BinaryOp, CallName, ScalarType, UnaryOp } from "./tree.ts";

type Binary = (a: number, b: number) => number;
type Unary = (a: number) => number;

/** Rounding of floating-point results: `Math.fround`, or the identity for double precision. */
export type Round = (x: number) => number;

type Compare = "eq" | "ne" | "lt" | "le" | "gt" | "ge";
type Logic = "land" | "lor";
type Bits = "and" | "or" | "xor" | "shl" | "shr";

const COMPARE: { readonly [F in Compare]: Binary } = {
  eq: (a, b) => Number(a === b),
  ne: (a, b) => Number(a !== b),
  lt: (a, b) => Number(a < b),
  le: (a, b) => Number(a <= b),
  gt: (a, b) => Number(a > b),
  ge: (a, b) => Number(a >= b),
};

/** As in WGSL: if an operand is NaN, the first one. */
const EXTREMES: { readonly [F in "min" | "max"]: Binary } = {
  min: (a, b) => b < a ? b : a,
  max: (a, b) => a < b ? b : a,
};

/** Arithmetic modulo 2^32. As in WGSL, x / 0 is x and x % 0 is 0. */
function integers(
  wrap: (x: number) => number,
): { readonly [F in Exclude<BinaryOp, Logic>]: Binary } {
  return {
    ...COMPARE,
    ...EXTREMES,
    add: (a, b) => wrap(a + b),
    sub: (a, b) => wrap(a - b),
    mul: (a, b) => wrap(Math.imul(a, b)),
    div: (a, b) => wrap(a / (b || 1)),
    rem: (a, b) => wrap(a % (b || 1)),
    and: (a, b) => wrap(a & b),
    or: (a, b) => wrap(a | b),
    xor: (a, b) => wrap(a ^ b),
    shl: (a, b) => wrap(a << b),
    // The sign of a wrapped value determines which bits are shifted in.
    shr: (a, b) => a < 0 ? a >> b : a >>> b,
  };
}

/** Floating-point arithmetic, rounded after each operation. */
export function floats(
  round: Round,
): { readonly [F in Exclude<BinaryOp, Logic | Bits>]: Binary } {
  return {
    ...COMPARE,
    ...EXTREMES,
    add: (a, b) => round(a + b),
    sub: (a, b) => round(a - b),
    mul: (a, b) => round(a * b),
    div: (a, b) => round(a / b),
    rem: (a, b) => round(a - round(b * Math.trunc(round(a / b)))),
  };
}

const BOOLS: { readonly [F in Logic | "eq" | "ne"]: Binary } = {
  eq: COMPARE.eq,
  ne: COMPARE.ne,
  land: (a, b) => a & b,
  lor: (a, b) => a | b,
};

/** Binary operators of each type of left operand. */
export const BINARY: {
  readonly [T in ScalarType]: { readonly [F in BinaryOp]?: Binary };
} = {
  f32: floats(Math.fround),
  i32: integers((x) => x | 0),
  u32: integers((x) => x >>> 0),
  bool: BOOLS,
};

/** Unary operators of each type of operand. */
export const UNARY: {
  readonly [T in ScalarType]: { readonly [F in UnaryOp]?: Unary };
} = {
  f32: { neg: (a) => -a },
  i32: { neg: (a) => -a | 0 },
  u32: {},
  bool: { not: (a) => Number(!a) },
};

/** A function of a kernel. */
export interface FunctionRow {
  readonly args: readonly ScalarType[];
  readonly type: ScalarType;
  /** Index of the first argument that must be constant. Default: none. */
  readonly constantFrom?: number;
  /** Operations counted by the cost model. */
  readonly operations: number;
  /** The result before its last rounding. */
  readonly of: (round: Round, ...args: number[]) => number;
}

/** Operations of a function that targets compute by a series. */
const SERIES = 16;

function ofFloats(
  args: 1 | 2 | 3,
  of: FunctionRow["of"],
  operations = 1,
): FunctionRow {
  const types = new Array<ScalarType>(args).fill("f32");
  return { args: types, type: "f32", operations, of };
}

function ofWord(of: (word: number) => number): FunctionRow {
  const args = ["u32"] as const;
  return { args, type: "f32", operations: 1, of: (_, word) => of(word!) };
}

/** The four bytes of a word, lowest first. */
export function wordBytes(word: number): number[] {
  return [0, 8, 16, 24].map((shift) => word >>> shift & 255);
}

/** Functions of kernels. */
export const FUNCTIONS: { readonly [F in CallName]: FunctionRow } = {
  fma: ofFloats(3, (round, a, b, c) => round(a! * b!) + c!),
  exp: ofFloats(1, (_, x) => Math.exp(x!), SERIES),
  log: ofFloats(1, (_, x) => Math.log(x!), SERIES),
  sqrt: ofFloats(1, (_, x) => Math.sqrt(x!)),
  rsqrt: ofFloats(1, (round, x) => 1 / round(Math.sqrt(x!))),
  sin: ofFloats(1, (_, x) => Math.sin(x!), SERIES),
  cos: ofFloats(1, (_, x) => Math.cos(x!), SERIES),
  tanh: ofFloats(1, (_, x) => Math.tanh(x!), SERIES),
  abs: ofFloats(1, (_, x) => Math.abs(x!)),
  floor: ofFloats(1, (_, x) => Math.floor(x!)),
  ceil: ofFloats(1, (_, x) => Math.ceil(x!)),
  trunc: ofFloats(1, (_, x) => Math.trunc(x!)),
  round: ofFloats(1, (_, x) => roundEven(x!)),
  sign: ofFloats(1, (_, x) => x! > 0 ? 1 : x! < 0 ? -1 : 0),
  pow: ofFloats(2, (_, x, y) => Math.pow(x!, y!), SERIES),
  roundF16: ofFloats(1, (_, x) => roundF16(x!)),
  unpackF16Lo: ofWord((word) => widenF16(word & 0xffff)),
  unpackF16Hi: ofWord((word) => widenF16(word >>> 16)),
  dot4I8: {
    args: ["u32", "u32"],
    type: "i32",
    operations: 1,
    of: (_, a, b) => {
      const right = wordBytes(b!);
      return wordBytes(a!).reduce(
        (sum, byte, i) => sum + (byte << 24 >> 24) * (right[i]! << 24 >> 24),
        0,
      );
    },
  },
  dot4U8I8: {
    args: ["u32", "u32"],
    type: "i32",
    operations: 1,
    of: (_, a, b) => {
      const right = wordBytes(b!);
      return wordBytes(a!).reduce(
        (sum, byte, i) => sum + byte * (right[i]! << 24 >> 24),
        0,
      );
    },
  },
  lookup16: {
    args: ["u32", "u32", "u32", "u32", "u32"],
    type: "u32",
    constantFrom: 1,
    operations: 1,
    of: (_, indices, ...words) => {
      const table = words.flatMap(wordBytes);
      return wordBytes(indices!)
        .reduceRight((word, byte) => (word << 8 | table[byte & 15]!) >>> 0, 0);
    },
  },
};

/** The type of a binary operation. Undefined if the operands are incompatible. */
export function binaryType(
  fn: BinaryOp,
  a: ScalarType,
  b: ScalarType,
): ScalarType | undefined {
  const right = fn === "shl" || fn === "shr" ? "u32" : a;
  if (b !== right || !Object.hasOwn(BINARY[a], fn)) return undefined;
  return isPredicate(fn) ? "bool" : a;
}

/** Whether an operator returns a bool. */
export function isPredicate(fn: BinaryOp): boolean {
  return Object.hasOwn(COMPARE, fn) || fn === "land" || fn === "lor";
}

/**
 * A value wrapped or rounded to a type. Conversions of floats to integers round towards zero and saturate; NaN becomes
 * 0.
 */
export function converted(
  x: number,
  from: ScalarType,
  to: ScalarType,
): number {
  switch (to) {
    case "f32":
      return Math.fround(x);
    case "bool":
      return Number(x !== 0);
    case "i32":
      return (from === "f32" ? clamp(x, -(2 ** 31), 2 ** 31 - 1) : x) | 0;
    case "u32":
      return (from === "f32" ? clamp(x, 0, 2 ** 32 - 1) : x) >>> 0;
  }
}

function clamp(x: number, low: number, high: number): number {
  return Math.min(high, Math.max(low, x));
}

const WORD = new DataView(new ArrayBuffer(4));

/** The bits of a value. */
export function bitsOf(type: ScalarType, value: number): number {
  if (type !== "f32") return value >>> 0;
  WORD.setFloat32(0, value);
  return WORD.getUint32(0);
}

/** The value of 32 bits. */
export function ofBits(type: ScalarType, bits: number): number {
  if (type !== "f32") return type === "i32" ? bits | 0 : bits;
  WORD.setUint32(0, bits);
  return WORD.getFloat32(0);
}

/** Whether a constant is a value of its type. */
export function fitsType(type: ScalarType, value: number | boolean): boolean {
  if (type === "bool") return typeof value === "boolean";
  if (typeof value !== "number" || Number.isNaN(value)) return false;
  return type === "f32" ||
    Number.isInteger(value) && converted(value, type, type) === value;
}
