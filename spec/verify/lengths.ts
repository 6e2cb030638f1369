/**
 * Rules of the buffer of dynamic lengths, after which integer inputs may be stored: `compiler/passes/share_inputs.ts`.
 */

import { alignedOffset } from "../layout.ts";
import { maxOverRanks, type PlanBuffer } from "../plan/plan.ts";
import type { Facts, Report } from "../plan/facts.ts";

/** The end of a buffer in its allocation, on the rank that needs the most. */
function endOf({ offset, bytes }: PlanBuffer): number {
  return offset + maxOverRanks(bytes);
}

/** Whether a byte of an allocation is in a buffer. */
function has(buffer: PlanBuffer, allocation: number, byte: number): boolean {
  return buffer.allocation === allocation && buffer.offset <= byte &&
    byte < endOf(buffer);
}

/**
 * Checks that only integer inputs are stored after the lengths, consecutively, and that launches read there only inputs
 * of their program.
 */
export function checkLengths(facts: Facts, report: Report): void {
  for (const buffer of facts.buffers.values()) {
    if (buffer.kind === "counts") checkSpan(facts, buffer, report);
  }
  checkReads(facts, report);
}

/** Checks the span of the buffer of lengths. */
function checkSpan(
  { plan, buffers }: Facts,
  lengths: PlanBuffer,
  report: Report,
): void {
  const inside = [...buffers.values()].filter((other) =>
    other !== lengths && other.allocation === lengths.allocation &&
    other.offset < endOf(lengths) && endOf(other) > lengths.offset
  );
  for (const { name, kind, dtype } of inside) {
    if (kind === "input" && (dtype === "i32" || dtype === "u32")) continue;
    report(
      `keep buffer '${name}' in '${lengths.name}'`,
      "it is no integer input",
    );
  }
  const ranges = inside
    .map((buffer) => ({ start: buffer.offset, end: endOf(buffer) }))
    .sort((a, b) => a.start - b.start);
  const end = endOf(lengths);
  let filled = lengths.offset + 4 * Math.max(1, plan.counts.length);
  for (const next of [...ranges, { start: end, end }]) {
    const from = alignedOffset(filled);
    filled = Math.max(filled, next.end);
    if (from >= alignedOffset(next.start)) continue;
    report(
      `read buffer '${lengths.name}'`,
      `no input is stored before byte ${next.start} of it`,
    );
  }
}

function checkReads(
  { plan, programs, buffers, kernels }: Facts,
  report: Report,
): void {
  for (const { program, steps } of programs) {
    const inputs = Object.values(program.inputs)
      .map(({ buffer }) => buffers.get(buffer)!);
    for (const at of steps) {
      const { step } = at;
      if (step.op !== "launch") continue;
      const { indices, bases } = kernels.get(step.kernel)!.facts;
      for (const [binding, name] of Object.entries(step.bindings)) {
        const { kind, allocation, offset } = buffers.get(name)!;
        if (kind !== "counts") continue;
        const stray = [indices, bases]
          .flatMap((words) => [...words.get(binding) ?? []])
          .find((word) =>
            word >= plan.counts.length &&
            !inputs.some((input) => has(input, allocation, offset + 4 * word))
          );
        if (stray === undefined) continue;
        report(
          `launch kernel '${step.kernel}'`,
          `word ${stray} of '${name}' is of no input of program '${program.name}'`,
          at,
        );
      }
    }
  }
}
