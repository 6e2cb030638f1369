/** The meaning of a scalar function in JavaScript. With `f32` arithmetic it is what a kernel computes; with f64, what the lambda does. */

import { invariant } from "../../spec/errors.ts";
import type { BinaryOp, CallName, Expr } from "../../spec/kernel/tree.ts";
import type { ScalarFunction } from "../graph/graph.ts";

type Value = number | boolean;

const BINARY: {
  readonly [op in BinaryOp]?: (a: number, b: number) => Value;
} = {
  add: (a, b) => a + b,
  sub: (a, b) => a - b,
  mul: (a, b) => a * b,
  div: (a, b) => a / b,
  rem: (a, b) => a % b,
  min: Math.min,
  max: Math.max,
  eq: (a, b) => a === b,
  ne: (a, b) => a !== b,
  lt: (a, b) => a < b,
  le: (a, b) => a <= b,
  gt: (a, b) => a > b,
  ge: (a, b) => a >= b,
};

const CALLS: { readonly [fn in CallName]?: (...xs: number[]) => number } = {
  fma: (a, b, c) => a! * b! + c!,
  exp: Math.exp,
  log: Math.log,
  sqrt: Math.sqrt,
  rsqrt: (x) => 1 / Math.sqrt(x!),
  sin: Math.sin,
  cos: Math.cos,
  tanh: Math.tanh,
  abs: Math.abs,
  floor: Math.floor,
  ceil: Math.ceil,
  trunc: Math.trunc,
  round: roundHalfEven,
  sign: Math.sign,
  pow: Math.pow,
};

/** To the nearest integer, halves to the even one, as kernels round. */
function roundHalfEven(x: number): number {
  const down = Math.floor(x);
  const rest = x - down;
  return rest < 0.5 || (rest === 0.5 && down % 2 === 0) ? down : down + 1;
}

/** Compute a scalar function of f32 and bool values. `precision` is that of every intermediate value. */
export function evaluateScalar(
  fn: ScalarFunction,
  args: readonly Value[],
  options: { readonly precision?: "f32" | "f64" } = {},
): Value {
  const round = options.precision === "f64" ? (x: number) => x : Math.fround;
  const keep = (x: Value) => typeof x === "number" ? round(x) : x;
  const names = new Map<string, Value>();
  args.forEach((value, i) => names.set(`p${i}`, keep(value)));
  const number = (e: Expr) => Number(visit(e));
  function visit(e: Expr): Value {
    if (e.op === "const") return keep(e.value);
    if (e.op === "local") {
      const value = names.get(e.name);
      invariant(value !== undefined, `'${e.name}' is not bound`);
      return value;
    }
    if (e.op === "select") return visit(visit(e.condition) ? e.a : e.b);
    if (e.op === "unary") return e.fn === "not" ? !visit(e.a) : -number(e.a);
    if (e.op === "binary") {
      if (e.fn === "land") return Boolean(visit(e.a)) && visit(e.b);
      if (e.fn === "lor") return Boolean(visit(e.a)) || visit(e.b);
      const f = BINARY[e.fn];
      invariant(f, `'${e.fn}' has no meaning on f32`);
      return keep(f(number(e.a), number(e.b)));
    }
    if (e.op === "call") {
      const f = CALLS[e.fn];
      invariant(f, `'${e.fn}' is not a function of f32 values`);
      return keep(f(...e.args.map(number)));
    }
    if (e.op === "convert") {
      return e.type === "bool" ? number(e.a) !== 0 : number(e.a);
    }
    throw new Error(`internal: '${e.op}' in a scalar function`);
  }
  for (const { name, value } of fn.lets) names.set(name, visit(value));
  return visit(fn.result);
}
