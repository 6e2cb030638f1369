/** Lengths of local axes: on each rank, over a group of ranks, and in the words of the plan. */

import { blockSizes, groupRanks, positionsOver } from "../../spec/mesh.ts";
import type { Size } from "../../spec/size.ts";
import type { Placed } from "../sharding/placed.ts";

/** The name by which the plan knows an axis. */
export function planAxis({ aliases }: Placed, axis: string): string {
  return aliases[axis] ?? axis;
}

/** The length of an axis on each rank, or the longest it can be there. */
export function localBound(placed: Placed, axis: string): number[] {
  const { size, over, deal, table } = placed.axes[axis]!;
  const { mesh, ranks } = placed;
  const lengths = table
    ? table.map((ids) => ids.length)
    : deal?.by === "blocks" && deal.within === undefined
    ? blockSizes(size, positionsOver(mesh, over))
    : [size];
  if (lengths.every((length) => length === lengths[0])) {
    return new Array<number>(ranks).fill(lengths[0]!);
  }
  return groupRanks(mesh, over).map((place) => lengths[place]!);
}

/** The most of an axis that the ranks of one group can have together. */
export function groupBound(
  placed: Placed,
  axis: string,
  over: readonly string[],
): number {
  const { size, deal, over: axisOver } = placed.axes[axis]!;
  if (axisOver.length === 0 || deal?.by !== "blocks") return size;
  const others = placed.mesh.map(({ name }) => name)
    .filter((name) => !over.includes(name));
  const groups = groupRanks(placed.mesh, others);
  const sums: number[] = [];
  for (const [rank, n] of localBound(placed, axis).entries()) {
    const group = groups[rank]!;
    sums[group] = (sums[group] ?? 0) + n;
  }
  return Math.min(size, sums.reduce((a, b) => Math.max(a, b)));
}

/** The run-time length of an axis on a rank, or over a group, as the host knows it. */
export function axisSize(
  placed: Placed,
  axis: string,
  over?: readonly string[],
): Size {
  const { size, dynamic, over: axisOver } = placed.axes[axis]!;
  if (!dynamic) return size;
  const count = planAxis(placed, axis);
  return over?.length && axisOver.length ? { count, over } : { count };
}
