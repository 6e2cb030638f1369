/** Lengths of local axes: on each rank, over a group of ranks, and in the words of the plan. */

import {
  blockSizes,
  groupOf,
  positionOver,
  positionsOver,
} from "../../spec/mesh.ts";
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
  const blocks = deal?.by === "blocks" && deal.within === undefined
    ? blockSizes(size, positionsOver(mesh, over))
    : undefined;
  return Array.from({ length: ranks }, (_, rank) => {
    const at = positionOver(mesh, rank, over);
    return table ? table[at]!.length : blocks ? blocks[at]! : size;
  });
}

/** The most of an axis that the ranks of one group can have together. */
export function groupBound(
  placed: Placed,
  axis: string,
  over: readonly string[],
): number {
  const { size, deal, over: axisOver } = placed.axes[axis]!;
  if (axisOver.length === 0 || deal?.by !== "blocks") return size;
  const local = localBound(placed, axis);
  const sums = local.map((_, rank) =>
    groupOf(placed.mesh, rank, over).reduce((n, other) => n + local[other]!, 0)
  );
  return Math.min(size, Math.max(...sums));
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
