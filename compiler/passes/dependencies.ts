/** Dependencies between the steps of a program. */

import { cachedIn } from "../../spec/bounded_cache.ts";
import { type Accesses, accessesOf } from "../../spec/plan/accesses.ts";
import { startedBy } from "../../spec/plan/handles.ts";
import type { Kernel } from "../../spec/kernel/tree.ts";
import type { Step } from "../../spec/plan/plan.ts";

/** Returns the buffers that a step reads and writes; for a launch, by the bindings of its kernel. */
export function accessesIn(
  steps: readonly Step[],
  kernels: ReadonlyMap<string, Kernel>,
): (step: Step) => Accesses {
  const started = startedBy(steps);
  return (step) =>
    accessesOf(step, started, {
      launched({ kernel, bindings: buffers }) {
        const { bindings } = kernels.get(kernel)!;
        const of = (access: "read" | "write") =>
          bindings.filter((b) =>
            b.access === access || b.access === "read_write"
          ).map(({ name }) => buffers[name]!);
        return { reads: of("read"), writes: of("write") };
      },
    });
}

/** Whether a step depends on one of other steps that precede it: then it cannot be moved before them. */
export type DependsOn = (step: Step, others: ReadonlySet<Step>) => boolean;

/** Finds the dependencies of each step: steps that write its inputs, or that access its outputs. */
export function dependencies(
  steps: readonly Step[],
  kernels: ReadonlyMap<string, Kernel>,
): DependsOn {
  const accesses = accessesIn(steps, kernels);
  const readers = new Map<string, Step[]>();
  const writers = new Map<string, Step[]>();
  const earlier = new Map<Step, readonly Step[]>();
  for (const step of steps) {
    const { reads, writes } = accesses(step);
    earlier.set(step, [
      ...[...reads, ...writes].flatMap((name) => writers.get(name) ?? []),
      ...writes.flatMap((name) => readers.get(name) ?? []),
    ]);
    for (const name of reads) stepsIn(readers, name).push(step);
    for (const name of writes) stepsIn(writers, name).push(step);
  }
  return (step, others) => earlier.get(step)!.some((on) => others.has(on));
}

function stepsIn(steps: Map<string, Step[]>, buffer: string): Step[] {
  return cachedIn(steps, buffer, { create: () => [] });
}
