/** Activation functions: elementwise ops composed of kernel functions. */

import { callSite } from "../../spec/call_site.ts";
import { ModelError } from "../../spec/errors.ts";
import { f32, local } from "../../spec/kernel/build.ts";
import { expr } from "../../spec/kernel/text/resolve.ts";
import type { Expr } from "../../spec/kernel/tree.ts";
import { scalarMap, wantFloat } from "./scalar_map.ts";
import { type Op, refuse, type Tensor, traceOf } from "./tensor.ts";
import type { Broadcast, CanBroadcast, Float } from "./types.ts";

/** exp(-x) with x clamped to at least -80, so that gradients are finite. */
function expMinus(x: Expr): Expr {
  return expr`exp(min(-${x}, 80))`;
}

/** x · sigmoid(x) */
function siluOf(x: Expr): Expr {
  return expr`${x} / (1.0 + ${expMinus(x)})`;
}

/** Binds a value to a name, so that it is computed once. */
type Once = (name: string, value: Expr) => Expr;

function activation(
  op: Op,
  x: Tensor,
  f: (x: Expr, once: Once) => Expr,
): Tensor<never, never> {
  traceOf([x], op);
  wantFloat(op, [x]);
  const lets: { name: string; value: Expr }[] = [];
  const result = f(local("p0", "f32"), (name, value) => {
    lets.push({ name, value });
    return local(name, "f32");
  });
  return scalarMap(op, [x], { parameters: ["f32"], lets, result });
}

/**
 * `1 / (1 + exp(-x))`. Axes: those of `x`. Dtype: "f32" or "f16". Errors: another dtype. Gradient: `y · (1 - y)`.
 * Sharding: that of the operands along every axis; sends nothing.
 *
 * @example
 * ```ts
 * const f = model({ n: 1 }, (m) => ({ y: sigmoid(m.input("x", "n")) }));
 * console.assert(evaluate(trace(f), { inputs: { x: [0] } }).outputs.y?.data[0] === 0.5);
 * ```
 */
export function sigmoid<A extends string, D extends Float>(
  x: Tensor<A, D>,
): Tensor<A, D> {
  return activation(sigmoid, x, (v) => expr`1.0 / (1.0 + ${expMinus(v)})`);
}

/**
 * `x · sigmoid(x)`, also called swish. Axes: those of `x`. Dtype: "f32" or "f16". Errors: another dtype. Gradient: `s
 * · (1 + x · (1 - s))`, s being `sigmoid(x)`. Sharding: that of the operands along every axis; sends nothing.
 *
 * @example
 * ```ts
 * const glu = model({ n: 2 }, (m) => ({ y: mul(silu(m.input("gate", "n")), m.input("up", "n")) }));
 * const { outputs } = evaluate(trace(glu), { inputs: { gate: [0, 100], up: [5, 2] } });
 * console.assert(String(outputs.y?.data) === "0,200");
 * ```
 */
export function silu<A extends string, D extends Float>(
  x: Tensor<A, D>,
): Tensor<A, D> {
  return activation(silu, x, siluOf);
}

/**
 * `up · silu(gate)` as one function: the gated activation of most families. Operands are broadcast by axis name.
 *
 * Axes: as `add`. Dtype: "f32" or "f16", both equal. Errors: as `add`; another dtype. Gradient: `silu(gate)` by `up`,
 * and `up` times that of `silu` by `gate`. Sharding: that of the operands along every axis; sends nothing.
 *
 * @example
 * ```ts
 * const glu = model({ n: 2 }, (m) => ({ y: swiglu(m.input("gate", "n"), m.input("up", "n")) }));
 * const { outputs } = evaluate(trace(glu), { inputs: { gate: [0, 100], up: [5, 2] } });
 * console.assert(String(outputs.y?.data) === "0,200");
 * ```
 */
export function swiglu<
  A extends string,
  D extends Float,
  B extends string = never,
>(
  gate: Tensor<A, D>,
  up: CanBroadcast<A, B, Tensor<B, NoInfer<D>>>,
): Tensor<Broadcast<A, B>, D> {
  const operands = [gate, up as Tensor] as const;
  traceOf(operands, swiglu);
  wantFloat(swiglu, operands);
  const [g, u] = [local("p0", "f32"), local("p1", "f32")];
  return scalarMap(swiglu, operands, {
    parameters: ["f32", "f32"],
    lets: [],
    result: expr`${siluOf(g)} * ${u}`,
  });
}

/** Options of `swigluOai`. */
export interface SwigluOaiOptions {
  /** Factor of the gate in the sigmoid. Default: 1.702. */
  readonly alpha?: number;
  /** Largest gate, and largest magnitude of `up`; positive. Default: 7. */
  readonly limit?: number;
}

/**
 * `(u + 1) · g · sigmoid(alpha · g)` as one function, the gated activation of gpt-oss: `g` is `gate`, at most
 * `limit`, and `u` is `up`, from `-limit` to `limit`. Operands are broadcast by axis name.
 *
 * Axes: as `add`. Dtype: "f32" or "f16", both equal. Errors: as `add`; another dtype; `limit` not above 0. Gradient:
 * that of the formula, 0 by an operand beyond its limit. Sharding: that of the operands along every axis; sends
 * nothing.
 *
 * @example
 * ```ts
 * const glu = model({ n: 2 }, (m) => ({ y: swigluOai(m.input("gate", "n"), m.input("up", "n")) }));
 * const { outputs } = evaluate(trace(glu), { inputs: { gate: [0, 100], up: [5, 2] } });
 * console.assert(outputs.y?.data[0] === 0 && Math.abs(outputs.y!.data[1]! - 21) < 1e-3);
 * ```
 */
export function swigluOai<
  A extends string,
  D extends Float,
  B extends string = never,
>(
  gate: Tensor<A, D>,
  up: CanBroadcast<A, B, Tensor<B, NoInfer<D>>>,
  { alpha = 1.702, limit = 7 }: SwigluOaiOptions = {},
): Tensor<Broadcast<A, B>, D> {
  const operands = [gate, up as Tensor] as const;
  traceOf(operands, swigluOai);
  wantFloat(swigluOai, operands);
  if (!(limit > 0)) {
    const error = new ModelError(
      `Cannot limit '${gate.axes}' to ${limit}: it is not above 0. Give a positive limit`,
      callSite(swigluOai),
    );
    return refuse(error, operands);
  }
  const [p0, p1] = [local("p0", "f32"), local("p1", "f32")];
  const [g, u] = [local("g", "f32"), local("u", "f32")];
  return scalarMap(swigluOai, operands, {
    parameters: ["f32", "f32"],
    lets: [
      { name: "g", value: expr`min(${p0}, ${limit})` },
      { name: "u", value: expr`min(max(${p1}, ${-limit}), ${limit})` },
    ],
    result: expr`(${u} + 1.0) * (${g} / (1.0 + exp(${-alpha} * ${g})))`,
  });
}

/**
 * The maximum of `x` and 0. Axes: those of `x`. Dtype: "f32" or "f16". Errors: another dtype. Gradient: 1 above 0, else
 * 0. Sharding: that of the operands along every axis; sends nothing.
 *
 * @example
 * ```ts
 * const f = model({ n: 2 }, (m) => ({ y: relu(m.input("x", "n")) }));
 * const { outputs } = evaluate(trace(f), { inputs: { x: [-2, 3] } });
 * console.assert(String(outputs.y?.data) === "0,3");
 * ```
 */
export function relu<A extends string, D extends Float>(
  x: Tensor<A, D>,
): Tensor<A, D> {
  return activation(relu, x, (v) => expr`max(0.0, ${v})`);
}

/**
 * `log(1 + exp(x))`, without overflow, to 1e-7. Axes: those of `x`. Dtype: "f32" or "f16". Errors: another dtype.
 * Gradient: `sigmoid(x)`. Sharding: that of the operands along every axis; sends nothing.
 *
 * @example
 * ```ts
 * const f = model({ n: 1 }, (m) => ({ y: softplus(m.input("x", "n")) }));
 * console.assert(evaluate(trace(f), { inputs: { x: [1000] } }).outputs.y?.data[0] === 1000);
 * ```
 */
export function softplus<A extends string, D extends Float>(
  x: Tensor<A, D>,
): Tensor<A, D> {
  const log1pExp = (v: Expr) => expr`log(1.0 + exp(${v}))`;
  return activation(softplus, x, (v) => {
    const above = expr`${v} + ${log1pExp(expr`-${v}`)}`;
    return expr`select(${log1pExp(v)}, ${above}, ${v} > 0)`;
  });
}

/** Options of `gelu`. */
export interface GeluOptions {
  /**
   * "tanh": `x / 2 · (1 + tanh(√(2/π) · (x + 0.044715 · x³)))`; "none": `x · Φ(x)`. Default "none", as in
   * PyTorch.
   */
  readonly approximate?: "none" | "tanh";
}

/**
 * `x · Φ(x)`, where Φ is the cumulative distribution function of the standard normal distribution, accurate to 2e-7;
 * or its tanh approximation.
 *
 * Axes: those of `x`. Dtype: "f32" or "f16". Errors: another dtype. Gradient: `Φ(x) + x · φ(x)`, or that of the
 * approximation. Sharding: that of the operands along every axis; sends nothing.
 *
 * @example
 * ```ts
 * const f = model({ n: 2 }, (m) => ({ y: gelu(m.input("x", "n")) }));
 * const { outputs } = evaluate(trace(f), { inputs: { x: [0, 1] } });
 * console.assert(outputs.y?.data[0] === 0 && Math.abs(outputs.y!.data[1]! - 0.8413447) < 1e-6);
 * ```
 */
export function gelu<A extends string, D extends Float>(
  x: Tensor<A, D>,
  options: GeluOptions = {},
): Tensor<A, D> {
  const f = options.approximate === "tanh" ? geluTanh : geluErf;
  return activation(gelu, x, f);
}

function geluTanh(x: Expr): Expr {
  const scale = Math.sqrt(2 / Math.PI);
  const inner = expr`${scale} * (${x} + 0.044715 * ${x} * ${x} * ${x})`;
  return expr`0.5 * ${x} * (1.0 + tanh(${inner}))`;
}

/** Coefficients of `log(erfc(z) / t) + z²` by powers of t = 1 / (1 + z / 2), to 1.2e-7 (Numerical Recipes, erfcc). */
const ERFC = [
  -1.26551223,
  1.00002368,
  0.37409196,
  0.09678418,
  -0.18628806,
  0.27886807,
  -1.13520398,
  1.48851587,
  -0.82215223,
  0.17087277,
];

function geluErf(x: Expr, once: Once): Expr {
  const z = once("z", expr`abs(${x}) * ${Math.SQRT1_2}`);
  const t = once("t", expr`1.0 / (1.0 + 0.5 * ${z})`);
  const series = ERFC.reduceRight<Expr>(
    (sum, c) => expr`${c} + ${t} * ${sum}`,
    f32(0),
  );
  const tail = once(
    "tail",
    expr`0.5 * ${t} * exp(${series} - ${z} * ${z})`,
  );
  return expr`${x} * select(1.0 - ${tail}, ${tail}, ${x} < 0)`;
}
