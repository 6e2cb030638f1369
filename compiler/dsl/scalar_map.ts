/** Elementwise nodes of built-in functions. The reference evaluates the same expression. */

import { ModelError } from "../../spec/errors.ts";
import { callSite } from "../../spec/call_site.ts";
import { builtInLambda } from "../graph/evaluate/scalar.ts";
import type { ScalarFunction } from "../graph/graph.ts";
import { report } from "../graph/problems.ts";
import { apply, type Op, opName, type Tensor } from "./tensor.ts";

/** Creates a node that applies a scalar expression of the parameters `p0`, `p1`, … to operands. */
export function scalarMap(
  op: Op,
  operands: readonly Tensor[],
  lowered: ScalarFunction,
): Tensor<never, never> {
  return apply(op, "map", operands, {
    lambda: builtInLambda(lowered),
    op: opName(op),
  });
}

/** Rejects operands that are not floating-point. */
export function wantFloat(op: Op, operands: readonly Tensor[]): void {
  for (const { axes, dtype, node, trace } of operands) {
    if (dtype !== "f32" && dtype !== "f16") {
      const error = new ModelError(
        `Cannot ${
          opName(op)
        } '${axes}': its dtype is '${dtype}', expected 'f32'. Cast it`,
        callSite(op),
      );
      report(trace.problems, error, [node]);
    }
  }
}
