/** Launches that a run needs for the outputs that it returns. */

import type { Plan, Program } from "./plan.ts";
import { accessesOf } from "./accesses.ts";
import { startedBy } from "./handles.ts";

/**
 * The launches of a program, by index of the step, whose results reach neither these outputs nor a state nor another
 * rank. A run that returns only these outputs does not execute them.
 */
export function unneededLaunches(
  { buffers, kernels }: Pick<Plan, "buffers" | "kernels">,
  program: Program,
  outputs: readonly string[],
): ReadonlySet<number> {
  const started = startedBy(program.steps);
  let left = program.steps.map((step, index) => ({
    index,
    isLaunch: step.op === "launch",
    ...accessesOf(step, started, {
      launched: ({ kernel, bindings }) => {
        const bound = kernels[kernel]!.tree.bindings;
        const all = bound.map(({ name }) => bindings[name]!);
        return {
          reads: all,
          writes: all.filter((_, i) => bound[i]!.access !== "read"),
        };
      },
    }),
  })).reverse();
  const needed = new Set(
    outputs.map((output) => program.outputs[output]!.buffer),
  );
  const isNeeded = (buffer: string) =>
    needed.has(buffer) ||
    !["scratch", "output"].includes(buffers[buffer]!.kind);
  // From the last step to the first. Rounds repeat steps, so a step may also write for one before it.
  for (let before = -1; before !== left.length;) {
    before = left.length;
    left = left.filter(({ isLaunch, reads, writes }) => {
      if (isLaunch && !writes.some(isNeeded)) return true;
      for (const buffer of reads) needed.add(buffer);
      return false;
    });
  }
  return new Set(left.map(({ index }) => index));
}
