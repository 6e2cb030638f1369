/** What each primitive does with operands of which ranks hold parts of a sum. */

import type { Expr } from "../../spec/kernel/tree.ts";
import type {
  Lambda,
  NodeOf,
  Primitive,
  ScalarFunction,
} from "../graph/graph.ts";

/** Whether the result is a part of the same sum where the operands marked in `parts`, and no others, are. */
type Rule<P extends Primitive> = (
  node: NodeOf<P>,
  parts: readonly boolean[],
) => boolean;

/** It needs all of every operand. */
function whole(): boolean {
  return false;
}

/** It is linear in its first operand. */
function first(_: unknown, [x, ...rest]: readonly boolean[]): boolean {
  return x === true && !rest.includes(true);
}

/** It is linear in each of its operands, not in several together. */
function oneOf(_: unknown, parts: readonly boolean[]): boolean {
  return parts.filter(Boolean).length === 1;
}

/** It is linear in all of its operands together. */
function together(_: unknown, parts: readonly boolean[]): boolean {
  return parts.every(Boolean);
}

/** The rules. A primitive without one does not compile. */
export const PARTIAL: { readonly [P in Primitive]: Rule<P> } = {
  input: whole,
  param: whole,
  state: whole,
  map: ({ params: { lambda } }, parts) => isLinear(lambda, parts),
  dot: oneOf,
  reduce: ({ params: { kind } }) => kind !== "max",
  accumulate: oneOf,
  softmax: whole,
  logSumExp: whole,
  rmsNorm: whole,
  rope: first,
  embedding: first,
  scatter: first,
  rename: first,
  split: first,
  merge: first,
  slice: first,
  concat: together,
  spread: first,
  transpose: first,
  cast: ({ dtype }) => dtype === "f32",
  topK: whole,
  route: whole,
  choices: whole,
  part: whole,
  dispatch: whole,
  combine: whole,
  collect: whole,
  gather: first,
  take: first,
  again: first,
  allReduce: whole,
  reduceScatter: whole,
  allGather: whole,
  cacheWrite: whole,
  attention: whole,
  attentionSum: whole,
  attentionGrad: whole,
};

/** How an expression depends on the parameters that are parts of a sum. */
type Degree = "not" | "linear" | "other";

/** Whether a scalar function is linear in these of its parameters together. Functions that are not lowered yet count as not. */
function isLinear({ lowered }: Lambda, parts: readonly boolean[]): boolean {
  if (lowered === undefined) return false;
  return degreeOf(lowered, parts) === "linear";
}

function degreeOf(
  { lets, result }: ScalarFunction,
  parts: readonly boolean[],
): Degree {
  const known = new Map<string, Degree>(
    parts.map((part, i) => [`p${i}`, part ? "linear" : "not"]),
  );
  for (const { name, value } of lets) known.set(name, degree(value, known));
  return degree(result, known);
}

function degree(expr: Expr, known: ReadonlyMap<string, Degree>): Degree {
  const of = (inner: Expr) => degree(inner, known);
  switch (expr.op) {
    case "const":
      return "not";
    case "local":
      return known.get(expr.name) ?? "other";
    case "unary":
      return expr.fn === "neg" ? of(expr.a) : constantIn(of(expr.a));
    case "binary":
      return ofTwo(expr.fn, of(expr.a), of(expr.b));
    case "select": {
      const [a, b] = [of(expr.a), of(expr.b)];
      if (of(expr.condition) !== "not") return "other";
      return a === b ? a : isZero(expr.a) ? b : isZero(expr.b) ? a : "other";
    }
    case "call":
      return expr.args.every((arg) => of(arg) === "not") ? "not" : "other";
    case "convert":
      return expr.type === "f32" ? of(expr.a) : constantIn(of(expr.a));
    default:
      return "other";
  }
}

/** Of a binary operation on expressions that depend on parts like this. */
function ofTwo(fn: string, a: Degree, b: Degree): Degree {
  switch (fn) {
    case "add":
    case "sub":
      return a === b ? a : "other";
    case "mul":
      return a === "not" ? b : b === "not" ? a : "other";
    case "div":
      return b === "not" ? a : "other";
    default:
      return a === "not" && b === "not" ? "not" : "other";
  }
}

/** Of a function that is not linear: it may be of what does not depend on parts. */
function constantIn(degree: Degree): Degree {
  return degree === "not" ? "not" : "other";
}

/** Nothing is a part of any sum. */
function isZero(expr: Expr): boolean {
  return expr.op === "const" && expr.value === 0;
}
