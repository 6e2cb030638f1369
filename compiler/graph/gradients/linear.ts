/** Linearity of primitives in their operands. Sums may pass linear ops before they are reduced. */

import type { Expr } from "../../../spec/kernel/tree.ts";
import type { Lambda, NodeOf, Primitive, ScalarFunction } from "../graph.ts";

/** Whether the result is a term of the same sum if exactly the operands marked in `terms` are. */
export type LinearRule<P extends Primitive> = (
  node: NodeOf<P>,
  terms: readonly boolean[],
) => boolean;

/** Ways of being linear. */
export const LINEAR = {
  /** Requires all terms of every operand. */
  never: () => false,
  /** Linear in its first operand. */
  first: (_: unknown, [x, ...rest]: readonly boolean[]) =>
    x === true && !rest.includes(true),
  /** Linear in each operand alone, not in several together. */
  oneOf: (_: unknown, terms: readonly boolean[]) =>
    terms.filter(Boolean).length === 1,
  /** Linear in all operands together. */
  together: (_: unknown, terms: readonly boolean[]) => terms.every(Boolean),
  /** Linear if its scalar function is. */
  lambda: ({ params: { lambda } }: NodeOf<"map">, terms: readonly boolean[]) =>
    isLinear(lambda, terms),
} as const;

/** How an expression depends on the parameters that are terms of a sum. */
type Degree = "not" | "linear" | "other";

/**
 * Whether a scalar function is linear in these parameters together. Functions that are not yet lowered count as
 * nonlinear.
 */
function isLinear({ lowered }: Lambda, terms: readonly boolean[]): boolean {
  if (lowered === undefined) return false;
  return degreeOf(lowered, terms) === "linear";
}

function degreeOf(
  { lets, result }: ScalarFunction,
  terms: readonly boolean[],
): Degree {
  const known = new Map<string, Degree>(
    terms.map((part, i) => [`p${i}`, part ? "linear" : "not"]),
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

/** Degree of a binary operation on expressions of these degrees. */
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

/** Degree of a nonlinear function: it is constant only if its argument is. */
function constantIn(degree: Degree): Degree {
  return degree === "not" ? "not" : "other";
}

/** Zero is a term of any sum. */
function isZero(expr: Expr): boolean {
  return expr.op === "const" && expr.value === 0;
}
