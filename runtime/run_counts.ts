/** The dynamic lengths of one run, for launches. */

import { groupOf } from "../spec/mesh.ts";
import type { AllGatherStep, Plan, SendStep } from "../spec/plan/plan.ts";
import type { Size } from "../spec/size.ts";

/** Lengths by rank, then in the order of `plan.counts`. */
export type RunCounts = readonly (readonly number[])[];

/** Number of times that a rank sends the bytes of an allGather or a send, by its lengths. */
export function gatheredRows(
  step: AllGatherStep | SendStep,
  plan: Plan,
  lengths: readonly number[],
): number {
  return step.rows ? lengths[plan.counts.indexOf(step.rows.axis)]! : 1;
}

/** A size on one rank, resolved on load so that a run looks up no names. */
export type BoundSize = number | ((counts: RunCounts) => number);

/** Returns the previous object if the lengths are equal. */
export function reuseCounts(before: RunCounts, now: RunCounts): RunCounts {
  const same = now.every((counts, rank) =>
    counts.every((n, i) => n === before[rank]?.[i])
  );
  return same && before.length === now.length ? before : now;
}

/** Resolves the names of a size for a rank. */
function bindSize(size: Size, plan: Plan, rank: number): BoundSize {
  if (typeof size === "number") return size;
  if ("count" in size) {
    const at = plan.counts.indexOf(size.count);
    if (!size.over?.length) return (counts) => counts[rank]![at]!;
    const group = groupOf(plan.mesh, rank, size.over);
    return (counts) => group.reduce((n, other) => n + counts[other]![at]!, 0);
  }
  if ("ceilDiv" in size) {
    const [a, b] = [bindSize(size.ceilDiv[0], plan, rank), size.ceilDiv[1]];
    return (counts) => Math.ceil(sizeInRun(a, counts) / b);
  }
  if ("upTo" in size || "above" in size) {
    const [by, limit, then] = "upTo" in size ? size.upTo : size.above;
    const [value, result] = [by, then].map((part) =>
      bindSize(part, plan, rank)
    ) as [BoundSize, BoundSize];
    const within = "upTo" in size;
    return (counts) =>
      sizeInRun(value, counts) <= limit === within
        ? sizeInRun(result, counts)
        : 0;
  }
  const [terms, start, combine] = "mul" in size
    ? [size.mul, 1, (a: number, b: number) => a * b] as const
    : "add" in size
    ? [size.add, 0, (a: number, b: number) => a + b] as const
    : [size.min, Infinity, (a: number, b: number) => Math.min(a, b)] as const;
  const bound = terms.map((term) => bindSize(term, plan, rank));
  return (counts) => {
    let result = start as number;
    for (const term of bound) result = combine(result, sizeInRun(term, counts));
    return result;
  };
}

/** The value of a bound size in a run. */
export function sizeInRun(size: BoundSize, counts: RunCounts): number {
  return typeof size === "number" ? size : size(counts);
}

/** The three workgroup counts of a launch on one rank. */
export function bindWorkgroups(
  workgroups: readonly [Size, Size, Size],
  plan: Plan,
  rank: number,
): (counts: RunCounts) => readonly [number, number, number] {
  const [x, y, z] = workgroups.map((size) => bindSize(size, plan, rank));
  if (
    typeof x === "number" && typeof y === "number" && typeof z === "number"
  ) {
    const fixed = [x, y, z] as const;
    return () => fixed;
  }
  // A session passes the same object while lengths do not change, as in decode.
  let last: RunCounts | undefined;
  let known: readonly [number, number, number] = [0, 0, 0];
  return (counts) => {
    if (counts !== last) {
      last = counts;
      known = [
        sizeInRun(x!, counts),
        sizeInRun(y!, counts),
        sizeInRun(z!, counts),
      ];
    }
    return known;
  };
}
