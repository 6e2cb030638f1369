/** Classes of equal ranks: ranks with equal values and the same steps. */

import { groupRanks, isIn, rankSetText } from "../mesh.ts";
import { partLengths } from "../axis_parts.ts";
import { onRank, type PerRank } from "../per_rank.ts";
import { sidesOf } from "./members.ts";
import type { Plan } from "./plan.ts";

/** The class of each rank, as a number. Ranks of one class are equal in every value that may differ by rank. */
export function rankClasses(plan: Plan): number[] {
  let classes = new Array<number>(plan.ranks).fill(0);
  const seen = new Set<string>();
  const split = (key: string, valueOf: (rank: number) => number) => {
    if (seen.has(key)) return;
    seen.add(key);
    const numbers = new Map<string, number>();
    classes = classes.map((of, rank) => {
      const mark = `${of} ${valueOf(rank)}`;
      const number = numbers.get(mark) ?? numbers.size;
      numbers.set(mark, number);
      return number;
    });
  };
  const splitBy = (value: PerRank) => {
    if (typeof value === "number") return;
    split(JSON.stringify(value), (rank) => onRank(value, rank));
  };
  for (const { bytes } of plan.allocations) splitBy(bytes);
  for (const { bytes, axes } of Object.values(plan.buffers)) {
    splitBy(bytes);
    for (const { size } of axes) splitBy(size);
  }
  for (const value of [plan.peakBytes, ...Object.values(plan.staging)]) {
    splitBy(value);
  }
  for (const axis of Object.values(plan.axes)) {
    const lengths = partLengths(plan, axis);
    if (!lengths || lengths.every((n) => n === lengths[0])) continue;
    const over = axis.over!;
    const groups = groupRanks(plan.mesh, over);
    split(`${over}: ${lengths}`, (rank) => lengths[groups[rank]!] ?? 0);
  }
  for (const { steps } of plan.programs) {
    for (const step of steps) {
      if (step.op === "copy") splitBy(step.bytes);
      const { reads, writes } = sidesOf(step);
      for (const set of [step.ranks, reads, writes]) {
        if (set === "all") continue;
        split(rankSetText(set), (rank) => isIn(set, plan.mesh, rank) ? 1 : 0);
      }
    }
  }
  return classes;
}
