/** Which items of an input reach which rank, so that a process need not have the others. */

import type { Plan, Program } from "../spec/plan/plan.ts";
import { type Inputs, splitAxes } from "./inputs.ts";
import { assignAxes } from "./shard.ts";

/** An input, and what it is given with. */
export interface Reached {
  readonly program: Program;
  readonly input: string;
  /** Those inputs at least that say how long axes are and how they are assigned. */
  readonly inputs: Inputs;
}

/** The indices along the first axis of an input that a rank gets in the first run of a session; undefined: all. */
export function reachedItems(
  plan: Plan,
  rank: number,
  { program, input, inputs }: Reached,
): Int32Array | undefined {
  const lengths = new Map<string, number>();
  for (const [name, { shape }] of Object.entries(inputs)) {
    program.inputs[name]!.axes.forEach((axis, i) =>
      lengths.set(axis, shape[i]!)
    );
  }
  const axes = assignAxes(plan, lengths, inputs);
  const port = program.inputs[input]!;
  return splitAxes(port, plan.buffers[port.buffer]!, rank, axes)[0]?.local;
}
