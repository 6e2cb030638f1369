/**
 * JavaScript arithmetic in kernel terms. Constants are folded in f64, as in JavaScript, and rounded to f32 only when
 * combined with a value; everything else is f32.
 */

import * as k from "../../spec/kernel/build.ts";
import type { BinaryOp, Expr } from "../../spec/kernel/tree.ts";

/** Binds an expression that is used several times to a name, unless it is a name or a constant. */
export type Bind = (value: Expr) => Expr;

/** The value of an f32 constant. */
export function constantNumber(e: Expr): number | undefined {
  return e.op === "const" && typeof e.value === "number" ? e.value : undefined;
}

/** The value of a bool constant. */
function constantBool(e: Expr): boolean | undefined {
  return e.op === "const" && typeof e.value === "boolean" ? e.value : undefined;
}

/** `f` of the operands if all are constants. */
function folded(
  operands: readonly Expr[],
  f: (...xs: number[]) => number,
): Expr | undefined {
  const values = operands.map(constantNumber);
  return values.every((x) => x !== undefined) ? k.f32(f(...values)) : undefined;
}

const COMPARISONS: {
  readonly [op in BinaryOp]?: (a: number, b: number) => boolean;
} = {
  eq: (a, b) => a === b,
  ne: (a, b) => a !== b,
  lt: (a, b) => a < b,
  le: (a, b) => a <= b,
  gt: (a, b) => a > b,
  ge: (a, b) => a >= b,
};

/** A comparison of two values of one type. */
export function compare(op: BinaryOp, a: Expr, b: Expr): Expr {
  const x = constantNumber(a), y = constantNumber(b), f = COMPARISONS[op];
  return f && x !== undefined && y !== undefined
    ? k.bool(f(x, y))
    : k.binary(op, a, b);
}

/** `!a` */
export function not(a: Expr): Expr {
  const x = constantBool(a);
  return x === undefined
    ? { op: "unary", type: "bool", fn: "not", a }
    : k.bool(!x);
}

/** `a && b` */
export function and(a: Expr, b: Expr): Expr {
  const x = constantBool(a), y = constantBool(b);
  if (x !== undefined) return x ? b : a;
  if (y !== undefined) return y ? a : b;
  return k.binary("land", a, b);
}

/** `a || b` */
export function or(a: Expr, b: Expr): Expr {
  const x = constantBool(a), y = constantBool(b);
  if (x !== undefined) return x ? a : b;
  if (y !== undefined) return y ? b : a;
  return k.binary("lor", a, b);
}

/** `condition ? a : b` */
export function choose(condition: Expr, a: Expr, b: Expr): Expr {
  const x = constantBool(condition);
  if (x !== undefined) return x ? a : b;
  if (a === b) return a;
  const p = constantBool(a), q = constantBool(b);
  if (p !== undefined && p === q) return a;
  if (p !== undefined) return p ? or(condition, b) : and(not(condition), b);
  if (q !== undefined) return q ? or(not(condition), a) : and(condition, a);
  return k.select(condition, a, b);
}

/** `-a` */
export function negate(a: Expr): Expr {
  return folded([a], (x) => -x) ?? k.neg(a);
}

/** `a op b` for a JavaScript operator on two numbers. */
export function arithmetic(
  op: "+" | "-" | "*" | "/" | "%" | "**",
  a: Expr,
  b: Expr,
  bind: Bind,
): Expr {
  switch (op) {
    case "+":
      return folded([a, b], (x, y) => x! + y!) ?? k.add(a, b);
    case "-":
      return folded([a, b], (x, y) => x! - y!) ?? k.sub(a, b);
    case "*":
      return folded([a, b], (x, y) => x! * y!) ?? k.mul(a, b);
    case "/":
      return folded([a, b], (x, y) => x! / y!) ?? k.div(a, b);
    case "%":
      return folded([a, b], (x, y) => x! % y!) ?? remainder(a, b, bind);
    case "**":
      return folded([a, b], (x, y) => x! ** y!) ?? power(a, b, bind);
  }
}

/**
 * x - trunc(x / y) * y, with the sign of x. The rounded quotient can be off by one if x is near a multiple of y, which
 * would be an error of y, so the remainder is mapped back into [0, |y|).
 */
function remainder(a: Expr, b: Expr, bind: Bind): Expr {
  const x = bind(a);
  const size = bind(k.call("abs", x));
  const y = bind(magnitude(b));
  const quotient = k.call("trunc", k.div(size, y));
  const rest = bind(k.fma(k.neg(quotient), y, size));
  const inside = bind(
    k.select(
      k.lt(rest, k.f32(0)),
      k.add(rest, y),
      k.select(k.binary("ge", rest, y), k.sub(rest, y), rest),
    ),
  );
  return k.select(k.lt(x, k.f32(0)), k.neg(inside), inside);
}

function magnitude(a: Expr): Expr {
  return folded([a], Math.abs) ?? k.call("abs", a);
}

/** Above this, repeated multiplication is no longer better than a power function. */
const LARGEST_UNROLLED_POWER = 16;

/** a ** b. Kernels' `pow` supports only positive bases, so integer exponents and negative bases are handled here. */
function power(a: Expr, b: Expr, bind: Bind): Expr {
  const exponent = constantNumber(b);
  if (exponent === 0) return k.f32(1);
  if (exponent === 0.5) return k.call("sqrt", a);
  if (exponent === -0.5) return k.div(k.f32(1), k.call("sqrt", a));
  if (exponent !== undefined && !Number.isInteger(exponent)) {
    return k.call("pow", a, b);
  }
  if (
    exponent !== undefined && Math.abs(exponent) <= LARGEST_UNROLLED_POWER
  ) {
    const product = powerOf(bind(a), Math.abs(exponent), bind);
    return exponent < 0 ? k.div(k.f32(1), product) : product;
  }
  const x = bind(a), y = bind(b);
  const size = bind(k.call("pow", k.call("abs", x), y));
  const half = k.mul(y, k.f32(0.5));
  const odd = k.binary("ne", k.call("floor", half), half);
  const isInteger = k.eq(k.call("trunc", y), y);
  const negative = k.select(odd, k.neg(size), size);
  return k.select(
    k.eq(y, k.f32(0)),
    k.f32(1),
    k.select(
      k.lt(x, k.f32(0)),
      k.select(isInteger, negative, k.call("pow", x, y)),
      size,
    ),
  );
}

/** x to a positive integer power by squaring. */
function powerOf(x: Expr, n: number, bind: Bind): Expr {
  if (n === 1) return x;
  const root = bind(powerOf(x, Math.floor(n / 2), bind));
  const square = k.mul(root, root);
  return n % 2 === 1 ? k.mul(square, x) : square;
}

/** A function of `Math` on numbers: its number of arguments and its lowering. */
interface MathFunction {
  readonly arity: number | "any";
  readonly js: (...xs: number[]) => number;
  readonly lower: (args: readonly Expr[], bind: Bind) => Expr;
}

function unary(
  name:
    | "exp"
    | "log"
    | "sqrt"
    | "abs"
    | "tanh"
    | "floor"
    | "ceil"
    | "sin"
    | "cos"
    | "sign"
    | "trunc",
): MathFunction {
  return { arity: 1, js: Math[name], lower: ([x]) => k.call(name, x!) };
}

/** Rounds halves towards positive infinity. */
function roundHalfUp(value: Expr, bind: Bind): Expr {
  const x = bind(value);
  const down = bind(k.call("floor", x));
  const up = k.binary("ge", k.sub(x, down), k.f32(0.5));
  return k.select(up, k.add(down, k.f32(1)), down);
}

const MATH: ReadonlyMap<string, MathFunction> = new Map(Object.entries({
  exp: unary("exp"),
  log: unary("log"),
  sqrt: unary("sqrt"),
  abs: unary("abs"),
  tanh: unary("tanh"),
  floor: unary("floor"),
  ceil: unary("ceil"),
  sin: unary("sin"),
  cos: unary("cos"),
  sign: unary("sign"),
  trunc: unary("trunc"),
  min: {
    arity: "any",
    js: Math.min,
    lower: (xs) => xs.reduce((a, b) => k.min(a, b)),
  },
  max: {
    arity: "any",
    js: Math.max,
    lower: (xs) => xs.reduce((a, b) => k.max(a, b)),
  },
  pow: {
    arity: 2,
    js: Math.pow,
    lower: ([a, b], bind) => power(a!, b!, bind),
  },
  round: {
    arity: 1,
    js: Math.round,
    lower: ([x], bind) => roundHalfUp(x!, bind),
  },
}));

/** Names of the supported functions of `Math`, sorted. */
export const MATH_FUNCTIONS: readonly string[] = [...MATH.keys()].sort();

/** A constant of `Math`, such as PI. */
export function mathConstant(name: string): Expr | undefined {
  const value = Object.getOwnPropertyDescriptor(Math, name)?.value;
  return typeof value === "number" ? k.f32(value) : undefined;
}

/** Number of arguments of a function of `Math`. Undefined if it is not supported. */
export function mathArity(name: string): number | "any" | undefined {
  return MATH.get(name)?.arity;
}

/** A call of a supported function of `Math` with the right number of arguments. */
export function mathCall(
  name: string,
  args: readonly Expr[],
  bind: Bind,
): Expr {
  const f = MATH.get(name)!;
  return folded(args, f.js) ?? f.lower(args, bind);
}
