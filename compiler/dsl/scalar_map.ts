/** Elementwise nodes of functions that are built in: their expression is also what the reference computes. */

import { ModelError } from "../../spec/errors.ts";
import { callSite } from "../../spec/call_site.ts";
import { builtInLambda } from "../graph/evaluate_scalar.ts";
import type { ScalarFunction } from "../graph/graph.ts";
import { apply, type Tensor, type Verb } from "./tensor.ts";

/** A scalar function of the parameters `p0`, `p1`, … over operands. */
export function scalarMap(
  verb: Verb,
  operands: readonly Tensor[],
  lowered: ScalarFunction,
): Tensor<never, never> {
  return apply(verb, "map", operands, {
    lambda: builtInLambda(lowered),
    verb: verb.name,
  });
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
