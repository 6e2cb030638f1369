/** Rules of unreduced values: no step uses a term as the sum. */

import type { LaunchStep } from "../plan/plan.ts";
import { sameList } from "./axes.ts";
import { degreesOf } from "../kernel/verify/linear.ts";
import type { Facts, Report, StepFacts } from "../plan/facts.ts";

/**
 * Checks that values computed from terms are terms over the same mesh axes, and over those of summed sharded axes,
 * until a gather. Terms are scratch: no output, state or weight is one.
 */
export function checkUnreduced(facts: Facts, report: Report): void {
  for (const [name, { kind, unreduced, dtype }] of facts.buffers) {
    if (!unreduced) continue;
    if (kind !== "scratch" || dtype !== "f32" || unreduced.length === 0) {
      report(
        `keep a part of a sum in buffer '${name}'`,
        `it is ${dtype} of kind '${kind}', and parts over mesh axes are f32 scratch`,
      );
    }
  }
  const known = new Map<string, readonly string[]>();
  for (const { steps } of facts.programs) {
    for (const at of steps) {
      checkStep(facts, at, report);
      const { step } = at;
      if (step.op !== "launch") continue;
      for (const binding of nonLinear(facts, step, known)) {
        report(
          `launch kernel '${step.kernel}'`,
          `what it stores to '${binding}' is not linear in what it reads of parts of sums, so it is no part of one`,
          at,
        );
      }
    }
  }
}

/** Bindings with terms to which a launch stores values that are not linear in the terms that it reads. */
function nonLinear(
  { buffers, kernels }: Facts,
  { kernel, bindings }: LaunchStep,
  known: Map<string, readonly string[]>,
): readonly string[] {
  const { facts: tree, kernel: { tree: { bindings: all } } } = kernels.get(
    kernel,
  )!;
  const parts = all.map(({ name }) => name).filter((name) =>
    Object.hasOwn(bindings, name) && buffers.get(bindings[name]!)!.unreduced
  );
  if (!parts.some((name) => tree.needs.has(name))) return [];
  const key = JSON.stringify([kernel, parts]);
  let found = known.get(key);
  if (!found) {
    const degrees = degreesOf(kernels.get(kernel)!.kernel.tree, new Set(parts));
    found = parts.filter((name) => {
      const degree = degrees.get(name) ?? "zero";
      return degree !== "zero" && degree !== "linear";
    });
    known.set(key, found);
  }
  return found;
}

/** The mesh axes that shard a buffer's axes and not those of another: a sum over them is a term. */
function summedOver(
  { plan, buffers }: Facts,
  from: string,
  to: string,
): readonly string[] {
  const left = buffers.get(to)!.axes.map(({ axis }) => axis);
  return buffers.get(from)!.axes.flatMap(({ axis }) =>
    left.includes(axis) ? [] : plan.axes[axis]?.over ?? []
  );
}

function checkStep(facts: Facts, at: StepFacts, report: Report): void {
  const unreducedOver = (name: string) =>
    facts.buffers.get(name)!.unreduced ?? [];
  const { step } = at;
  // The exchange of a wait was checked at its start.
  if (step.op === "wait") return;
  for (const name of new Set(at.reads)) {
    const over = unreducedOver(name);
    if (over.length === 0) continue;
    if (step.op === "allGather") {
      // Terms over the gathered axes are then complete; terms over others remain.
      const found = step.over.filter((axis) => over.includes(axis));
      const remaining = over.filter((axis) => !found.includes(axis));
      if (
        found.length > 0 && found.length < step.over.length ||
        !sameList(unreducedOver(step.to), remaining)
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
    // The rows that an exchange moves.
    const writes = step.op === "allToAll" && name === step.from
      ? [step.to]
      : at.writes;
    const taken = writes.find((to) => {
      const more = unreducedOver(to).filter((axis) => !over.includes(axis));
      const less = over.some((axis) => !unreducedOver(to).includes(axis));
      // With all-gathered tokens, a rank combines the rows of its own experts.
      const summed = step.part?.op === "combine"
        ? more
        : more.length > 0
        ? summedOver(facts, name, to)
        : [];
      return less || more.some((axis) => !summed.includes(axis));
    });
    if (taken !== undefined || writes.length === 0) {
      report(
        `read buffer '${name}'`,
        `it is a part of a sum over ${over.join("+")}, and '${
          taken ?? "what is read"
        }' would take it for ${
          taken && unreducedOver(taken).length > 0
            ? `one over ${unreducedOver(taken).join("+")}`
            : "all of it"
        }`,
        at,
      );
    }
  }
}
