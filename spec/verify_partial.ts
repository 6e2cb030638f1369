/** Rules of sums that ranks hold in parts: nothing takes a part for the whole. */

import { sameList } from "./verify_axes.ts";
import type { Facts, Report, StepFacts } from "./verify_facts.ts";

/**
 * What is computed from parts of a sum is a part of a sum over the same mesh axes, until a gather brings all parts
 * together. Parts are scratch: no output, state or weight is one.
 */
export function checkPartial(facts: Facts, report: Report): void {
  for (const [name, { kind, partial, dtype }] of facts.buffers) {
    if (!partial) continue;
    if (kind !== "scratch" || dtype !== "f32" || partial.length === 0) {
      report(
        `keep a part of a sum in buffer '${name}'`,
        `it is ${dtype} of kind '${kind}', and parts over mesh axes are f32 scratch`,
      );
    }
  }
  for (const { steps } of facts.programs) {
    for (const at of steps) checkStep(facts, at, report);
  }
}

function checkStep(facts: Facts, at: StepFacts, report: Report): void {
  const partialOf = (name: string) => facts.buffers.get(name)!.partial ?? [];
  const { step } = at;
  for (const name of new Set(at.reads)) {
    const over = partialOf(name);
    if (over.length === 0) continue;
    if (step.op === "allGather") {
      // Terms over the gathered axes are all there then; those over others stay terms.
      const found = step.over.filter((axis) => over.includes(axis));
      const kept = over.filter((axis) => !found.includes(axis));
      if (
        found.length > 0 && found.length < step.over.length ||
        !sameList(partialOf(step.to), kept)
      ) {
        report(
          `gather '${name}'`,
          `it is a part of a sum over ${over.join("+")}, gathered over ${
            step.over.join("+")
          } into '${step.to}'`,
          at,
        );
      }
      continue;
    }
    const taken = at.writes.find((to) => !sameList(partialOf(to), over));
    if (taken !== undefined || at.writes.length === 0) {
      report(
        `read buffer '${name}'`,
        `it is a part of a sum over ${over.join("+")}, and '${
          taken ?? "what is read"
        }' would take it for ${
          taken && partialOf(taken).length > 0
            ? `one over ${partialOf(taken).join("+")}`
            : "all of it"
        }`,
        at,
      );
    }
  }
}
