/** The buffers that steps read and write. */

import type { AllToAllStep, LaunchStep, Step } from "./plan.ts";

/** Buffers that a step reads and writes; one may be among both. */
export interface Accesses {
  readonly reads: readonly string[];
  readonly writes: readonly string[];
}

/** The reads and writes of a step: for a launch, those of `launched`; for a wait, those of its exchange. */
export function accessesOf(
  step: Step,
  started: ReadonlyMap<string, AllToAllStep>,
  { launched }: { readonly launched: (step: LaunchStep) => Accesses },
): Accesses {
  switch (step.op) {
    case "launch":
      return launched(step);
    case "copy":
      return { reads: [step.from], writes: [step.to] };
    case "allGather":
      return {
        reads: [
          step.from,
          ...step.rows ? [step.rows.counts] : [],
          ...step.blocks ? [step.blocks.groupRank] : [],
        ],
        writes: [step.to],
      };
    case "send":
      return {
        reads: [step.from, ...step.rows ? [step.rows.counts] : []],
        writes: [step.to],
      };
    case "allToAll":
      return {
        reads: [step.from, step.counts, step.groupRank],
        writes: [step.to, step.receivedCounts],
      };
    case "rounds":
      return { reads: [step.counts], writes: [step.to] };
    case "wait":
      return accessesOf(started.get(step.handle)!, started, { launched });
    default:
      return step satisfies never;
  }
}

/** Every buffer that a step names. */
export function buffersOf(step: Step): string[] {
  if (step.op === "wait") return [];
  const { reads, writes } = accessesOf(step, new Map(), {
    launched: ({ bindings }) => ({
      reads: Object.values(bindings),
      writes: [],
    }),
  });
  return [...reads, ...writes];
}
