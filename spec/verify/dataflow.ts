/** Rule of aliasing: a step does not write a buffer that it binds under a second name. */

import type { Facts, Report, StepFacts } from "../plan/facts.ts";

/** Checks that a written buffer is bound only once in a step. */
export function checkAliasing(facts: Facts, report: Report): void {
  for (const { steps } of facts.programs) {
    for (const at of steps) {
      const twice = aliased(at);
      if (twice !== undefined) {
        report(
          `write buffer '${twice}'`,
          "the step uses it under a second name",
          at,
        );
      }
    }
  }
}

function aliased({ step, reads, writes }: StepFacts): string | undefined {
  const names = step.op === "launch"
    ? Object.values(step.bindings)
    : [...reads, ...writes];
  return writes.find((name) => names.indexOf(name) !== names.lastIndexOf(name));
}
