/**
 * Scalar functions in JavaScript. In `f32` arithmetic they compute the results of kernels; in f64, those of the lambda.
 */

import type { DType } from "../../../spec/dtype.ts";
import { invariant } from "../../../spec/errors.ts";
import {
  BINARY,
  floats,
  FUNCTIONS,
  UNARY,
} from "../../../spec/kernel/semantics.ts";
import type { Expr, ScalarType } from "../../../spec/kernel/tree.ts";
import type { Lambda, ScalarFunction } from "../graph.ts";

type Value = number | boolean;

/** Compute type of a dtype in a scalar function. */
export function scalarType(dtype: DType): ScalarType {
  return dtype === "f16" ? "f32" : dtype;
}

/** A built-in scalar function, already lowered, as a lambda. */
export function builtInLambda(lowered: ScalarFunction): Lambda {
  const compute = compileScalar(lowered, { precision: "f64" });
  const js = (...xs: number[]) => Number(compute(xs));
  return { js, span: undefined, lowered };
}

/** A scalar function as JavaScript. */
export type Compiled = (args: readonly Value[]) => Value;

/** An expression as a function of the values of parameters and lets. */
type Compute = (slots: readonly number[]) => number;

/** Compiles a scalar function of f32 and bool values to JavaScript. `precision`: that of every intermediate value. */
function compileScalar(
  fn: ScalarFunction,
  options: { readonly precision?: "f32" | "f64" } = {},
): Compiled {
  const round = options.precision === "f64" ? (x: number) => x : Math.fround;
  const numbers: typeof BINARY.f32 = floats(round);
  const keep = (x: Value) => round(Number(x));
  const slots = new Map<string, number>(
    fn.parameters.map((_, i) => [`p${i}`, i]),
  );
  function compile(e: Expr): Compute {
    switch (e.op) {
      case "const": {
        const value = keep(e.value);
        return () => value;
      }
      case "local": {
        const slot = slots.get(e.name);
        invariant(slot !== undefined, `'${e.name}' is not bound`);
        return (values) => values[slot]!;
      }
      case "select": {
        const [condition, a, b] = [e.condition, e.a, e.b].map(compile);
        return (values) => condition!(values) ? a!(values) : b!(values);
      }
      case "unary": {
        const a = compile(e.a);
        const f = UNARY[e.a.type === "bool" ? "bool" : "f32"][e.fn];
        invariant(f, `'${e.fn}' has no meaning on ${e.a.type}`);
        return (values) => f(a(values));
      }
      case "binary": {
        const [a, b] = [compile(e.a), compile(e.b)];
        const f = (e.a.type === "bool" ? BINARY.bool : numbers)[e.fn];
        invariant(f, `'${e.fn}' has no meaning on ${e.a.type}`);
        return (values) => f(a(values), b(values));
      }
      case "call": {
        const { of } = FUNCTIONS[e.fn];
        const args = e.args.map(compile);
        return (values) => round(of(round, ...args.map((arg) => arg(values))));
      }
      case "convert": {
        const a = compile(e.a);
        return e.type === "bool" ? (values) => Number(a(values) !== 0) : a;
      }
      default:
        throw new Error(`internal: '${e.op}' in a scalar function`);
    }
  }
  const lets = fn.lets.map(({ name, value }, i) => {
    const compute = compile(value);
    slots.set(name, fn.parameters.length + i);
    return compute;
  });
  const result = compile(fn.result);
  return (args) => {
    const values = args.map(keep);
    for (const compute of lets) values.push(compute(values));
    const value = result(values);
    return fn.result.type === "bool" ? value !== 0 : value;
  };
}

/** Evaluates a scalar function of f32 and bool values. `precision`: that of every intermediate value. */
export function evaluateScalar(
  fn: ScalarFunction,
  args: readonly Value[],
  options: { readonly precision?: "f32" | "f64" } = {},
): Value {
  return compileScalar(fn, options)(args);
}
