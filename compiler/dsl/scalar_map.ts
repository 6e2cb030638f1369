/** Elementwise nodes of functions that are built in: their expression is also what the reference computes. */

import { ModelError } from "../../spec/errors.ts";
import { callSite } from "../../spec/call_site.ts";
import { builtInLambda } from "../graph/evaluate_scalar.ts";
import type { ScalarFunction } from "../graph/graph.ts";
import { report } from "../graph/problems.ts";
import { apply, type Op, type Tensor } from "./tensor.ts";

/** A scalar function of the parameters `p0`, `p1`, … over operands. */
export function scalarMap(
  op: Op,
  operands: readonly Tensor[],
  lowered: ScalarFunction,
): Tensor<never, never> {
  return apply(op, "map", operands, {
    lambda: builtInLambda(lowered),
    op: op.name,
  });
}

/** Refuse operands that are no floating-point numbers. */
export function wantFloat(op: Op, operands: readonly Tensor[]): void {
  for (const { axes, dtype, node, trace } of operands) {
    if (dtype !== "f32" && dtype !== "f16") {
      const error = new ModelError(
        `Cannot ${op.name} '${axes}': its dtype is '${dtype}', expected 'f32'. Cast it`,
        callSite(op),
      );
      report(trace.problems, error, [node]);
    }
  }
}
