/** Elementwise nodes of functions that are built in: their expression is also what the reference computes. */

import { ModelError } from "../../spec/errors.ts";
import type { DType } from "../../spec/dtype.ts";
import type { ScalarType } from "../../spec/kernel/tree.ts";
import { callSite } from "../../spec/call_site.ts";
import { compileScalar } from "../graph/evaluate_scalar.ts";
import type { ScalarFunction } from "../graph/graph.ts";
import { apply, type Tensor, type Verb } from "./tensor.ts";

/** How a dtype is computed with inside a kernel. */
export function scalarType(dtype: DType): ScalarType {
  return dtype === "f16" ? "f32" : dtype;
}

/** A scalar function of the parameters `p0`, `p1`, … over operands. */
export function scalarMap(
  verb: Verb,
  operands: readonly Tensor[],
  lowered: ScalarFunction,
): Tensor<never, never> {
  const compute = compileScalar(lowered, { precision: "f64" });
  const js = (...xs: number[]) => Number(compute(xs));
  const lambda = { js, span: undefined, lowered };
  return apply(verb, "map", operands, { lambda, verb: verb.name });
}

/** Refuse operands that are no floating-point numbers. */
export function wantFloat(verb: Verb, operands: readonly Tensor[]): void {
  for (const { axes, dtype } of operands) {
    if (dtype !== "f32" && dtype !== "f16") {
      throw new ModelError(
        `Cannot ${verb.name} '${axes}': its dtype is '${dtype}', expected 'f32'. Cast it`,
        callSite(verb),
      );
    }
  }
}
