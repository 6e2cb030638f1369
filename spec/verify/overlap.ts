/** Rules of shared memory: simultaneously live buffers do not overlap, and no step binds an allocation in two ways. */

import { isReadOnly } from "../kernel/tree.ts";
import {
  type LaunchStep,
  maxOverRanks,
  type PlanBuffer,
} from "../plan/plan.ts";
import { type Life, livesOf } from "../plan/lives.ts";
import type { Facts, Report } from "../plan/facts.ts";

/** Bytes of an allocation used by a buffer, on the rank that needs the most. */
interface Range {
  readonly name: string;
  readonly start: number;
  readonly end: number;
}

function rangeOf({ name, offset, bytes }: PlanBuffer): Range {
  return { name, start: offset, end: offset + maxOverRanks(bytes) };
}

/** The range of dynamic lengths that the host writes: inputs may be stored after it, in the same buffer. */
function writtenRange({ plan }: Facts, buffer: PlanBuffer): Range {
  const range = rangeOf(buffer);
  return buffer.kind === "counts"
    ? { ...range, end: range.start + 4 * plan.counts.length }
    : range;
}

/** Checks that buffers that overlap in an allocation are never live at the same time. */
export function checkOverlap(facts: Facts, report: Report): void {
  for (const program of facts.programs) {
    const live = facts.plan.allocations.map(() => new LiveRanges());
    for (const { life, begins } of eventsOf(livesOf(facts, program).values())) {
      const buffer = facts.buffers.get(life.name)!;
      const { allocation } = buffer;
      if (!begins) {
        live[allocation]!.remove(writtenRange(facts, buffer));
        continue;
      }
      const other = live[allocation]!.add(writtenRange(facts, buffer));
      if (other === undefined) continue;
      report(
        `keep buffers '${other.name}' and '${life.name}' in allocation ${allocation}`,
        "they overlap and are live at once",
        program.steps[Math.max(life.first, 0)],
      );
    }
  }
}

/** Starts and ends of live ranges in order; starts first at one step. */
function eventsOf(
  lives: Iterable<Life>,
): { readonly life: Life; readonly begins: boolean }[] {
  const events = [...lives].flatMap((life) => [
    { life, begins: true, at: 2 * life.first },
    { life, begins: false, at: 2 * life.last + 1 },
  ]);
  return events.sort((a, b) => a.at - b.at);
}

/** Live ranges in an allocation, by start. They do not overlap, so only neighbours are compared. */
class LiveRanges {
  readonly #ranges: Range[] = [];

  /** Adds a range. Returns an overlapping one, in which case it is not added. */
  add(range: Range): Range | undefined {
    const at = this.#indexOf(range.start);
    const [before, after] = [this.#ranges[at - 1], this.#ranges[at]];
    if (before && before.end > range.start) return before;
    if (after && after.start < range.end) return after;
    this.#ranges.splice(at, 0, range);
    return undefined;
  }

  remove({ name, start }: Range): void {
    const at = this.#indexOf(start);
    if (this.#ranges[at]?.name === name) this.#ranges.splice(at, 1);
  }

  /** The index of the first range that starts at or after `start`. */
  #indexOf(start: number): number {
    let [low, high] = [0, this.#ranges.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#ranges[middle]!.start < start) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}

/**
 * Checks WebGPU's rules for the memory of a step: a dispatch binds an allocation as read-only or as writable storage,
 * and nothing overlaps writable ranges; a copy is between two allocations.
 */
export function checkUsage(facts: Facts, report: Report): void {
  for (const { steps } of facts.programs) {
    for (const at of steps) {
      const { step } = at;
      if (step.op === "launch") {
        const fault = usageFault(facts, step);
        if (fault) report(`launch kernel '${step.kernel}'`, fault, at);
      } else if (step.op === "copy") {
        const [from, to] = [step.from, step.to]
          .map((name) => facts.buffers.get(name)!.allocation);
        if (from !== to) continue;
        report(
          `copy '${step.from}' to '${step.to}'`,
          `both are in allocation ${from}`,
          at,
        );
      }
    }
  }
}

function usageFault(
  { kernels, buffers }: Facts,
  step: LaunchStep,
): string | undefined {
  const given = new Map(Object.entries(step.bindings));
  const bound = new Map<string, boolean>();
  const seen = new Map<number, { name: string; readOnly: boolean }>();
  for (const binding of kernels.get(step.kernel)!.kernel.tree.bindings) {
    const name = given.get(binding.name);
    // Another rule requires a buffer for every binding.
    if (name === undefined) continue;
    const { allocation } = buffers.get(name)!;
    const readOnly = isReadOnly(binding);
    const other = seen.get(allocation);
    if (other && other.readOnly !== readOnly) {
      return `it binds '${other.name}' and '${name}' in allocation ${allocation}, one as read-only and one as writable storage`;
    }
    if (bound.get(name) === false) {
      return `it binds '${name}' twice as writable storage`;
    }
    seen.set(allocation, { name, readOnly });
    bound.set(name, readOnly);
  }
  return undefined;
}
