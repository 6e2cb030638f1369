/**
 * Merge launches: those of a block that do not depend on each other, as projections of the same rows, are one (horizontal
 * fusion). Holds after it: every step finds what it reads as it was in the order given; bits do not change, as every
 * workgroup does what it did.
 */

import type { Kernel } from "../../spec/kernel/tree.ts";
import { limitOf } from "../../spec/limits.ts";
import type { LaunchStep, Step } from "../../spec/plan.ts";
import { STORED_BYTES } from "../../spec/dtype.ts";
import { sum } from "../../spec/sum.ts";
import { type Launched, mergeKernels } from "./merge_kernels.ts";
import { addKernel, LENGTHS, type Lowering } from "./lower/context.ts";
import { accesses } from "./overlap.ts";

/** Merge the launches of `steps`; kernels that no step launches any more leave the draft. */
export function mergeLaunches(
  lowering: Lowering,
  steps: readonly Step[],
  limits: { readonly [limit: string]: number },
): Step[] {
  const { kernels } = lowering.draft;
  const rest = [...steps];
  const result: Step[] = [];
  for (let first; (first = rest.shift());) {
    result.push(
      canMerge(first) ? takeMerged(lowering, first, { rest, limits }) : first,
    );
  }
  const used = new Set(
    result.flatMap((step) => step.op === "launch" ? [step.kernel] : []),
  );
  for (const name of kernels.keys()) {
    if (!used.has(name)) kernels.delete(name);
  }
  return result;
}

/** Whether a launch may be merged: of the forward pass, in a block, and no part of a dispatch, whose steps have an order. */
function canMerge(step: Step): step is LaunchStep {
  return step.op === "launch" && step.block !== undefined && !step.part &&
    !step.phase;
}

/** Take out of `rest` what merges with `first`: launches of its block before the next exchange that do not depend on what stays before them. */
function takeMerged(
  lowering: Lowering,
  first: LaunchStep,
  { rest, limits }: {
    readonly rest: Step[];
    readonly limits: { readonly [limit: string]: number };
  },
): LaunchStep {
  const known = { kernels: lowering.draft.kernels, started: new Map() };
  const [read, written] = [new Set<string>(), new Set<string>()];
  const note = (step: Step) => {
    const { reads, writes } = accesses(step, known);
    for (const name of reads) read.add(name);
    for (const name of writes) written.add(name);
  };
  const launched = (step: LaunchStep): Launched => ({
    kernel: lowering.draft.kernels.get(step.kernel)!,
    bindings: step.bindings,
    workgroups: step.workgroups,
  });
  note(first);
  let steps = [first];
  let merged: Launched | undefined;
  for (let i = 0; i < rest.length;) {
    const step = rest[i]!;
    if (step.op !== "launch" || step.block !== first.block) break;
    const { reads, writes } = accesses(step, known);
    const depends = reads.some((name) => written.has(name)) ||
      writes.some((name) => written.has(name) || read.has(name));
    const next = canMerge(step) && !depends
      ? mergeKernels([...steps, step].map(launched), {
        buffer: LENGTHS,
        counts: lowering.placed.counts,
      })
      : undefined;
    note(step);
    if (next && fits(next.kernel, limits)) {
      steps = [...steps, step as LaunchStep];
      merged = next;
      rest.splice(i, 1);
    } else i++;
  }
  if (!merged) return first;
  const { kernel, bindings, workgroups } = merged;
  return {
    ...first,
    ...{ kernel: addKernel(lowering, kernel), bindings, workgroups },
    label: steps.map(({ label }) => label ?? "").join("; "),
  };
}

function fits(
  { bindings, shared }: Kernel,
  limits: { readonly [limit: string]: number },
): boolean {
  const bytes = sum(shared.map((a) => a.length * STORED_BYTES[a.type]));
  return bindings.length <=
      limitOf(limits, "maxStorageBuffersPerShaderStage") &&
    bytes <= limitOf(limits, "maxComputeWorkgroupStorageSize");
}
