/** Lifetimes of scratch buffers on a rank over the steps of a program. */

import { onRank, type PlanBuffer } from "../spec/plan/plan.ts";
import { livesOf } from "../spec/plan/lives.ts";
import type { PlanView, ProgramView } from "./plan_view.ts";

/** The lifetime of a scratch buffer in a program. */
export interface LiveBuffer {
  readonly buffer: PlanBuffer;
  readonly bytes: number;
  /** The first and last step that use it. */
  readonly first: number;
  readonly last: number;
}

/** Returns the scratch buffers of a program on a rank, in the order of their first write. */
export function liveBuffers(
  { facts }: PlanView,
  program: ProgramView,
  rank: number,
): LiveBuffer[] {
  return [...livesOf(facts, program)].flatMap(([name, { first, last }]) => {
    const buffer = facts.buffers.get(name)!;
    return buffer.kind === "scratch"
      ? [{ buffer, bytes: onRank(buffer.bytes, rank), first, last }]
      : [];
  });
}

/** Returns the bytes in use at each step. */
function bytesOverSteps(
  { steps }: ProgramView,
  buffers: readonly LiveBuffer[],
): number[] {
  const change = new Array<number>(steps.length + 1).fill(0);
  for (const { bytes, first, last } of buffers) {
    change[first]! += bytes;
    change[Math.min(last + 1, steps.length)]! -= bytes;
  }
  let now = 0;
  return change.slice(0, -1).map((bytes) => now += bytes);
}

/** Returns the step with the maximum use, and its buffers, largest first. */
export function peakOf(
  program: ProgramView,
  buffers: readonly LiveBuffer[],
): {
  readonly step: number;
  readonly bytes: number;
  readonly of: LiveBuffer[];
} {
  const over = bytesOverSteps(program, buffers);
  const bytes = Math.max(0, ...over);
  const step = Math.max(0, over.indexOf(bytes));
  const of = buffers.filter(({ first, last }) => first <= step && step <= last)
    .sort((a, b) => b.bytes - a.bytes);
  return { step, bytes, of };
}
