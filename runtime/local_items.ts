/** The items of an input that each rank needs, so that a process can omit the others. */

import type { Plan, Program } from "../spec/plan/plan.ts";
import { type Inputs, splitAxes } from "./inputs.ts";
import { assignAxes } from "./shard.ts";

/** An input, and the other inputs of the run. */
export interface LocalItems {
  readonly program: Program;
  readonly input: string;
  /** At least those inputs that determine the lengths and assignments of axes. */
  readonly inputs: Inputs;
}

/** The indices along the first axis of an input that a rank receives in the first run of a session. Undefined: all. */
export function localItems(
  plan: Plan,
  rank: number,
  { program, input, inputs }: LocalItems,
): Int32Array | undefined {
  const lengths = new Map<string, number>();
  for (const [name, { shape }] of Object.entries(inputs)) {
    // The program may have an input per micro-batch instead.
    program.inputs[name]?.axes.forEach((axis, i) =>
      lengths.set(axis, shape[i]!)
    );
  }
  const axes = assignAxes(plan, lengths, inputs);
  const port = program.inputs[input]!;
  return splitAxes(port, plan.buffers[port.buffer]!, rank, axes)[0]?.local;
}
