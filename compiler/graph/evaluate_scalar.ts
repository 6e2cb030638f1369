/** The meaning of a scalar function in JavaScript. With `f32` arithmetic it is what a kernel computes; with f64, what the lambda does. */

import type { DType } from "../../spec/dtype.ts";
import { invariant } from "../../spec/errors.ts";
import type {
  BinaryOp,
  CallName,
  Expr,
  ScalarType,
} from "../../spec/kernel/tree.ts";
import type { Lambda, ScalarFunction } from "./graph.ts";

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

/** How a dtype is computed with in a scalar function. */
export function scalarType(dtype: DType): ScalarType {
  return dtype === "f16" ? "f32" : dtype;
}

/** A scalar function of the library's, which is lowered already, as a lambda. */
export function builtInLambda(lowered: ScalarFunction): Lambda {
  const compute = compileScalar(lowered, { precision: "f64" });
  const js = (...xs: number[]) => Number(compute(xs));
  return { js, span: undefined, lowered };
}

/** A scalar function as JavaScript. */
export type Compiled = (args: readonly Value[]) => Value;

/** An expression, given the values of parameters and lets. */
type Compute = (slots: readonly Value[]) => Value;

/** Turn a scalar function of f32 and bool values into JavaScript. `precision` is that of every intermediate value. */
function compileScalar(
  fn: ScalarFunction,
  options: { readonly precision?: "f32" | "f64" } = {},
): Compiled {
  const round = options.precision === "f64" ? (x: number) => x : Math.fround;
  const keep = (x: Value) => typeof x === "number" ? round(x) : x;
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
        return e.fn === "not"
          ? (values) => !a(values)
          : (values) => -Number(a(values));
      }
      case "binary":
        return compileBinary(e);
      case "call": {
        const f = CALLS[e.fn];
        invariant(f, `'${e.fn}' is not a function of f32 values`);
        const args = e.args.map(compile);
        return (values) => round(f(...args.map((arg) => Number(arg(values)))));
      }
      case "convert": {
        const a = compile(e.a);
        return e.type === "bool"
          ? (values) => Number(a(values)) !== 0
          : (values) => Number(a(values));
      }
      default:
        throw new Error(`internal: '${e.op}' in a scalar function`);
    }
  }
  function compileBinary(e: Extract<Expr, { op: "binary" }>): Compute {
    const [a, b] = [compile(e.a), compile(e.b)];
    if (e.fn === "land") return (values) => Boolean(a(values)) && b(values);
    if (e.fn === "lor") return (values) => Boolean(a(values)) || b(values);
    const f = BINARY[e.fn];
    invariant(f, `'${e.fn}' has no meaning on f32`);
    return (values) => keep(f(Number(a(values)), Number(b(values))));
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
    return result(values);
  };
}

/** Compute a scalar function of f32 and bool values. `precision` is that of every intermediate value. */
export function evaluateScalar(
  fn: ScalarFunction,
  args: readonly Value[],
  options: { readonly precision?: "f32" | "f64" } = {},
): Value {
  return compileScalar(fn, options)(args);
}
