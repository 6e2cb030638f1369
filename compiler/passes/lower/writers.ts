/** Steps that write buffers. */

import type { Step } from "../../../spec/plan/plan.ts";
import { amendBuffer } from "./context.ts";
import type { Lowering } from "./lowering.ts";

/** Buffers that a launch writes. */
export function writesOf(
  { draft: { kernels } }: Lowering,
  step: Step,
): string[] {
  if (step.op !== "launch") return [];
  return kernels.get(step.kernel)!.bindings
    .filter(({ access }) => access !== "read")
    .map(({ name }) => step.bindings[name]!);
}

/** Buffers that a launch reads. */
export function readsOf(
  { draft: { kernels } }: Lowering,
  step: Step,
): string[] {
  if (step.op !== "launch") return [];
  return kernels.get(step.kernel)!.bindings
    .filter(({ access }) => access !== "write")
    .map(({ name }) => step.bindings[name]!);
}

/** Adds `by` to the number of steps that write each of these buffers. */
export function changeWriters(
  lowering: Lowering,
  buffers: readonly string[],
  by: 1 | -1,
): void {
  for (const buffer of buffers) {
    const { writers = 1 } = lowering.draft.buffers.get(buffer)!;
    amendBuffer(lowering, buffer, { writers: writers + by });
  }
}
