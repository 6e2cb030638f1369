/** Asynchronous exchanges, started by one step and waited for by another. */

import type { AllToAllStep, Step } from "./plan.ts";

/** The exchanges that the steps of a program start, by handle. */
export function startedBy(
  steps: readonly Step[],
): ReadonlyMap<string, AllToAllStep> {
  return new Map(
    steps.flatMap((step) =>
      step.op === "allToAll" && step.handle !== undefined
        ? [[step.handle, step] as const]
        : []
    ),
  );
}
