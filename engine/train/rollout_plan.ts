/** Plans of rollouts beside that of a training. */

import { isTrained, type TrainedParameters } from "../../compiler/mod.ts";
import { sourceNames } from "../../spec/axis_parts.ts";
import type { FileDType } from "../../spec/dtype.ts";
import type { LegalPlan } from "../../spec/mod.ts";
import type { Plan } from "../../spec/plan/plan.ts";
import { compileTarget, type PlanOptions } from "../open.ts";
import type { Published } from "../target.ts";

/** A training that rollouts are compiled for. */
export interface RolloutsOf {
  readonly training: Plan;
  readonly trained: TrainedParameters | undefined;
  /** Storage dtypes of constant weights by tensor. */
  readonly weights: { readonly [tensor: string]: FileDType };
}

/** Compiles the plan that samples from the weights of a training. */
export async function compileRollouts(
  target: Published,
  { training, trained, weights }: RolloutsOf,
  options: PlanOptions,
): Promise<LegalPlan> {
  const stored = training.weights
    .filter(({ source }) => isTrained(source, trained))
    .flatMap((weight) =>
      sourceNames(training, weight).map((name) => [name, weight.stored])
    );
  return await compileTarget(
    target,
    { ...weights, ...Object.fromEntries(stored) },
    { ...options, next: { normalizer: true } },
  );
}
