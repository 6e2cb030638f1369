/** Derives a program that executes a part of another: only the steps that requested outputs depend on. */

import { predictStaging } from "./bytes.ts";
import type { Plan, Program } from "./plan.ts";
import { collectFacts } from "./facts.ts";

/** The new program. */
export interface PartProgramOptions {
  /** Its name. */
  readonly name: string;
  /** Outputs of the plan's first program. */
  readonly outputs: readonly string[];
  /** States that it updates like the first program. Default: none. */
  readonly states?: readonly string[];
}

/**
 * The plan with one more program: the steps of the first that these outputs depend on. It shares all buffers. For a
 * training step it is the forward pass, without updates of parameters.
 */
export function withPartProgram(
  plan: Plan,
  { name, outputs, states = [] }: PartProgramOptions,
): Plan {
  const [{ program, steps }] = collectFacts(plan).programs as [
    ReturnType<typeof collectFacts>["programs"][number],
  ];
  const wanted = Object.fromEntries(
    outputs.map((output) => [output, program.outputs[output]!]),
  );
  const needed = new Set([
    ...Object.values(wanted).map(({ buffer }) => buffer),
    ...states,
  ]);
  const indices: number[] = [];
  for (const { index, reads, writes } of [...steps].reverse()) {
    // A buffer may be written by several steps, each a part of it: all of them count.
    if (!writes.some((buffer) => needed.has(buffer))) continue;
    indices.push(index);
    for (const buffer of reads) needed.add(buffer);
  }
  const part: Program = {
    name,
    inputs: Object.fromEntries(
      Object.entries(program.inputs)
        .filter(([, { buffer }]) => needed.has(buffer)),
    ),
    outputs: wanted,
    steps: indices.reverse().map((index) => program.steps[index]!),
  };
  const programs = [...plan.programs, part];
  const buffers = Object.fromEntries(
    Object.entries(plan.buffers).map(([key, buffer]) => {
      const order = buffer.written?.[program.name];
      const writes = order !== undefined && needed.has(key) &&
        (order === "before reads" || states.includes(key));
      const written = { ...buffer.written, [name]: order! };
      return [key, writes ? { ...buffer, written } : buffer];
    }),
  );
  return {
    ...plan,
    programs,
    buffers,
    staging: predictStaging({ ...plan, programs }),
  };
}
