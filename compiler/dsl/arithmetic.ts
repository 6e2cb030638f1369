/** Elementwise ops. All are the primitive `map`; operands are broadcast by axis name. */

import { ModelError } from "../../spec/errors.ts";
import type { DType } from "../../spec/dtype.ts";
import { binary, call, local, neg as negate } from "../../spec/kernel/build.ts";
import type {
  BinaryOp,
  CallName,
  Expr,
  ScalarType,
} from "../../spec/kernel/tree.ts";
import { scalarType } from "../graph/evaluate/scalar.ts";
import type { Lambda } from "../graph/graph.ts";
import { callSite } from "../../spec/call_site.ts";
import { wantFloat } from "./scalar_map.ts";
import {
  apply,
  type Op,
  opName,
  refuse,
  type Tensor,
  traceOf,
} from "./tensor.ts";
import type { Broadcast, CanBroadcast, Float } from "./types.ts";

/** A built-in function, with its lowering. */
function builtin(
  js: (...xs: number[]) => number,
  parameters: ScalarType[],
  result: Expr,
): Lambda {
  return { js, span: undefined, lowered: { parameters, lets: [], result } };
}

/** An op of two operands. The second may be a number. */
function two(
  op: Op,
  fn: BinaryOp,
  js: (a: number, b: number) => number,
  a: Tensor,
  b: number | Tensor | string,
): Tensor<never, never> {
  traceOf(typeof b === "number" ? [a] : [a, b], op);
  const type = scalarType(a.dtype);
  const p0 = local("p0", type);
  if (typeof b === "number") {
    if (type !== "f32" && !Number.isInteger(b)) {
      const error = new ModelError(
        `Cannot ${
          opName(op)
        } '${a.axes}' and ${b}: its dtype is '${a.dtype}'. Give a whole number, or cast it`,
        callSite(op),
      );
      return refuse(error, [a]);
    }
    const value: Expr = {
      op: "const",
      type,
      value: type === "f32" ? Math.fround(b) : b,
    };
    const constant = value.value as number;
    const lambda = builtin(
      (x) => js(x!, constant),
      [type],
      binary(fn, p0, value),
    );
    return apply(op, "map", [a], { lambda, op: opName(op) });
  }
  const lambda = builtin(
    (x, y) => js(x!, y!),
    [type, type],
    binary(fn, p0, local("p1", type)),
  );
  // A failed check has type string only for the type checker: `traceOf` rejected it at run time.
  return apply(op, "map", [a, b as Tensor], { lambda, op: opName(op) });
}

/**
 * The sum `a + b`, operands broadcast by axis name; `b` may be a number.
 *
 * Axes: one operand has all axes of the other; the result has its axes in its order. Dtype: both equal, any. Errors:
 * neither operand has all axes of the other; dtypes differ. Gradient: 1 by `a` and by `b`, summed over the axes that an
 * operand lacks. Sharding: that of the operands along every axis; sends nothing.
 *
 * @example
 * ```ts
 * const biased = model({ token: 2, embed: 2 }, (m) => ({
 *   y: add(m.input("x", "token embed"), m.param("bias", "embed")),
 * }));
 * const { outputs } = evaluate(trace(biased), {
 *   inputs: { x: [1, 2, 3, 4] },
 *   params: { bias: [10, 20] },
 * });
 * console.assert(String(outputs.y?.data) === "11,22,13,24");
 * ```
 */
export function add<
  A extends string,
  D extends DType,
  B extends string = never,
>(
  a: Tensor<A, D>,
  b: number | CanBroadcast<A, B, Tensor<B, NoInfer<D>>>,
): Tensor<Broadcast<A, B>, D> {
  return two(add, "add", (x, y) => x + y, a, b);
}

/**
 * The difference `a - b`, operands broadcast by axis name; `b` may be a number.
 *
 * Axes, dtype and errors: as `add`. Gradient: 1 by `a` and -1 by `b`, summed as for `add`. Sharding: that of the
 * operands along every axis; sends nothing.
 *
 * @example
 * ```ts
 * const minus = model({ n: 2 }, (m) => ({ y: sub(m.input("x", "n"), 1) }));
 * const { outputs } = evaluate(trace(minus), { inputs: { x: [1, 2] } });
 * console.assert(String(outputs.y?.data) === "0,1");
 * ```
 */
export function sub<
  A extends string,
  D extends DType,
  B extends string = never,
>(
  a: Tensor<A, D>,
  b: number | CanBroadcast<A, B, Tensor<B, NoInfer<D>>>,
): Tensor<Broadcast<A, B>, D> {
  return two(sub, "sub", (x, y) => x - y, a, b);
}

/**
 * The product `a * b`, operands broadcast by axis name; `b` may be a number.
 *
 * Axes, dtype and errors: as `add`. Gradient: `b` by `a` and `a` by `b`, summed as for `add`. Sharding: that of the
 * operands along every axis; sends nothing.
 *
 * @example
 * ```ts
 * const half = model({ n: 2 }, (m) => ({ y: mul(m.input("x", "n"), 0.5) }));
 * const { outputs } = evaluate(trace(half), { inputs: { x: [1, 2] } });
 * console.assert(String(outputs.y?.data) === "0.5,1");
 * ```
 */
export function mul<
  A extends string,
  D extends DType,
  B extends string = never,
>(
  a: Tensor<A, D>,
  b: number | CanBroadcast<A, B, Tensor<B, NoInfer<D>>>,
): Tensor<Broadcast<A, B>, D> {
  return two(mul, "mul", (x, y) => x * y, a, b);
}

/**
 * The quotient `a / b`, operands broadcast by axis name; `b` may be a number. Integer quotients are truncated.
 *
 * Axes, dtype and errors: as `add`. Gradient: `1 / b` by `a` and `-a / b²` by `b`, summed as for `add`; integers have
 * none. Sharding: that of the operands along every axis; sends nothing.
 *
 * @example
 * ```ts
 * const ratio = model({ n: 2 }, (m) => ({
 *   y: div(m.input("a", "n"), m.input("b", "n")),
 * }));
 * const { outputs } = evaluate(trace(ratio), { inputs: { a: [1, 9], b: [2, 3] } });
 * console.assert(String(outputs.y?.data) === "0.5,3");
 * ```
 */
export function div<
  A extends string,
  D extends DType,
  B extends string = never,
>(
  a: Tensor<A, D>,
  b: number | CanBroadcast<A, B, Tensor<B, NoInfer<D>>>,
): Tensor<Broadcast<A, B>, D> {
  return two(div, "div", (x, y) => x / y, a, b);
}

/**
 * The maximum of `a` and `b`, operands broadcast by axis name; `b` may be a number.
 *
 * Axes, dtype and errors: as `add`. Gradient: that of the result for the larger operand, for `a` if both are equal.
 * Sharding: that of the operands along every axis; sends nothing.
 *
 * @example
 * ```ts
 * const positive = model({ n: 2 }, (m) => ({ y: maximum(m.input("x", "n"), 0) }));
 * const { outputs } = evaluate(trace(positive), { inputs: { x: [-1, 2] } });
 * console.assert(String(outputs.y?.data) === "0,2");
 * ```
 */
export function maximum<
  A extends string,
  D extends DType,
  B extends string = never,
>(
  a: Tensor<A, D>,
  b: number | CanBroadcast<A, B, Tensor<B, NoInfer<D>>>,
): Tensor<Broadcast<A, B>, D> {
  return two(maximum, "max", Math.max, a, b);
}

/**
 * The minimum of `a` and `b`, operands broadcast by axis name; `b` may be a number.
 *
 * Axes, dtype and errors: as `add`. Gradient: that of the result for the smaller operand, for `a` if both are equal.
 * Sharding: that of the operands along every axis; sends nothing.
 *
 * @example
 * ```ts
 * const capped = model({ n: 2 }, (m) => ({ y: minimum(m.input("x", "n"), 1) }));
 * const { outputs } = evaluate(trace(capped), { inputs: { x: [-1, 2] } });
 * console.assert(String(outputs.y?.data) === "-1,1");
 * ```
 */
export function minimum<
  A extends string,
  D extends DType,
  B extends string = never,
>(
  a: Tensor<A, D>,
  b: number | CanBroadcast<A, B, Tensor<B, NoInfer<D>>>,
): Tensor<Broadcast<A, B>, D> {
  return two(minimum, "min", Math.min, a, b);
}

/** An op of one operand: a function of the kernel tree. */
function one(
  op: Op,
  fn: CallName,
  js: (x: number) => number,
  x: Tensor,
): Tensor<never, never> {
  traceOf([x], op);
  wantFloat(op, [x]);
  const lambda = builtin((v) => js(v!), ["f32"], call(fn, local("p0", "f32")));
  return apply(op, "map", [x], { lambda, op: opName(op) });
}

/**
 * The negative of `x`.
 *
 * Axes: those of `x`. Dtype: all except "u32". Errors: an operand of dtype "u32". Gradient: -1. Sharding: that of the
 * operands along every axis; sends nothing.
 *
 * @example
 * ```ts
 * const minus = model({ n: 2 }, (m) => ({ y: neg(m.input("x", "n")) }));
 * const { outputs } = evaluate(trace(minus), { inputs: { x: [1, -2] } });
 * console.assert(String(outputs.y?.data) === "-1,2");
 * ```
 */
export function neg<A extends string, D extends Exclude<DType, "u32">>(
  x: Tensor<A, D>,
): Tensor<A, D> {
  const trace = traceOf([x], neg);
  const type = scalarType(x.dtype);
  if (trace && type === "u32") {
    const error = new ModelError(
      `Cannot neg '${x.axes}': its dtype is 'u32', expected 'i32'. Cast it`,
      callSite(neg),
    );
    return refuse(error, [x]);
  }
  const lambda = builtin((v) => -v!, [type], negate(local("p0", type)));
  return apply(neg, "map", [x], { lambda, op: "neg" });
}

/**
 * e to the power of `x`. Axes: those of `x`. Dtype: "f32" or "f16". Errors: another dtype. Gradient: `exp(x)`.
 * Sharding: that of the operands along every axis; sends nothing.
 *
 * @example
 * ```ts
 * const f = model({ n: 1 }, (m) => ({ y: exp(m.input("x", "n")) }));
 * console.assert(evaluate(trace(f), { inputs: { x: [0] } }).outputs.y?.data[0] === 1);
 * ```
 */
export function exp<A extends string, D extends Float>(
  x: Tensor<A, D>,
): Tensor<A, D> {
  return one(exp, "exp", Math.exp, x);
}

/**
 * The natural logarithm of `x`. Axes: those of `x`. Dtype: "f32" or "f16". Errors: another dtype. Gradient: `1 / x`.
 * Sharding: that of the operands along every axis; sends nothing.
 *
 * @example
 * ```ts
 * const f = model({ n: 1 }, (m) => ({ y: log(m.input("x", "n")) }));
 * console.assert(evaluate(trace(f), { inputs: { x: [1] } }).outputs.y?.data[0] === 0);
 * ```
 */
export function log<A extends string, D extends Float>(
  x: Tensor<A, D>,
): Tensor<A, D> {
  return one(log, "log", Math.log, x);
}

/**
 * The square root of `x`. Axes: those of `x`. Dtype: "f32" or "f16". Errors: another dtype. Gradient: `1 / (2 ·
 * sqrt(x))`. Sharding: that of the operands along every axis; sends nothing.
 *
 * @example
 * ```ts
 * const f = model({ n: 1 }, (m) => ({ y: sqrt(m.input("x", "n")) }));
 * console.assert(evaluate(trace(f), { inputs: { x: [9] } }).outputs.y?.data[0] === 3);
 * ```
 */
export function sqrt<A extends string, D extends Float>(
  x: Tensor<A, D>,
): Tensor<A, D> {
  return one(sqrt, "sqrt", Math.sqrt, x);
}

/**
 * The hyperbolic tangent of `x`. Axes: those of `x`. Dtype: "f32" or "f16". Errors: another dtype. Gradient: `1 -
 * y²`. Sharding: that of the operands along every axis; sends nothing.
 *
 * @example
 * ```ts
 * const f = model({ n: 1 }, (m) => ({ y: tanh(m.input("x", "n")) }));
 * console.assert(evaluate(trace(f), { inputs: { x: [0] } }).outputs.y?.data[0] === 0);
 * ```
 */
export function tanh<A extends string, D extends Float>(
  x: Tensor<A, D>,
): Tensor<A, D> {
  return one(tanh, "tanh", Math.tanh, x);
}

/**
 * The absolute value of `x`. Axes: those of `x`. Dtype: "f32" or "f16". Errors: another dtype. Gradient: the sign of
 * `x`; 0 at 0. Sharding: that of the operands along every axis; sends nothing.
 *
 * @example
 * ```ts
 * const f = model({ n: 1 }, (m) => ({ y: abs(m.input("x", "n")) }));
 * console.assert(evaluate(trace(f), { inputs: { x: [-3] } }).outputs.y?.data[0] === 3);
 * ```
 */
export function abs<A extends string, D extends Float>(
  x: Tensor<A, D>,
): Tensor<A, D> {
  return one(abs, "abs", Math.abs, x);
}

/** A scalar function with one parameter per tensor. */
export type Scalar<B extends string, C extends string, E extends string> =
  [B] extends [never] ? (a: number) => number
    : [C] extends [never] ? (a: number, b: number) => number
    : [E] extends [never] ? (a: number, b: number, c: number) => number
    : (a: number, b: number, c: number, d: number) => number;

/**
 * Applies a scalar function to one to four tensors, broadcast by axis name. The compiler reads the function's source at
 * this call and makes it part of a kernel; `evaluate` calls the function itself.
 *
 * Axes: one operand has all axes of the others; the result has its axes in its order. Dtype: all equal, "f32" or "f16".
 * Errors: no operand has all axes; dtypes differ; the function has more parameters than there are tensors; at compile
 * time, a function outside the scalar subset. Gradient: derived from the source of the function; conditions and
 * rounding have none. Sharding: that of the operands along every axis; sends nothing.
 *
 * @example
 * ```ts
 * const glu = model({ n: 2 }, (m) => ({
 *   y: map((g, u) => (g / (1 + Math.exp(-g))) * u, m.input("gate", "n"), m.input("up", "n")),
 * }));
 * const { outputs } = evaluate(trace(glu), { inputs: { gate: [0, 100], up: [5, 2] } });
 * console.assert(String(outputs.y?.data) === "0,200");
 * ```
 */
export function map<
  A extends string,
  D extends Float,
  B extends string = never,
  C extends string = never,
  E extends string = never,
>(
  f: Scalar<B, C, E>,
  a: Tensor<A, D>,
  b?: CanBroadcast<A, B, Tensor<B, NoInfer<D>>>,
  c?: CanBroadcast<Broadcast<A, B>, C, Tensor<C, NoInfer<D>>>,
  d?: CanBroadcast<Broadcast<Broadcast<A, B>, C>, E, Tensor<E, NoInfer<D>>>,
): Tensor<Broadcast<Broadcast<Broadcast<A, B>, C>, E>, D> {
  return mapped(map, f, a, b, c, d);
}

/** `map` after type checking of its operands. */
function mapped(
  op: Op,
  f: unknown,
  ...given: readonly unknown[]
): Tensor<never, never> {
  const operands = given.filter((operand, i) =>
    i === 0 || operand !== undefined
  ) as Tensor[];
  traceOf(operands, op);
  wantFloat(op, operands);
  if (typeof f !== "function") {
    throw new ModelError(
      "Cannot map: the first argument is not a function",
      callSite(op),
    );
  }
  if (f.length > operands.length) {
    const error = new ModelError(
      `Cannot map a function of ${f.length} numbers over ${operands.length} tensors`,
      callSite(op),
    );
    return refuse(error, operands as [Tensor, ...Tensor[]]);
  }
  const lambda: Lambda = {
    js: f as (...xs: number[]) => number,
    span: callSite(op),
  };
  return apply(op, "map", operands, { lambda, op: "map" });
}
