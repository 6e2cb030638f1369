/** Lengths of local axes: per rank, per group of ranks, and as plan sizes. */

import { partBounds } from "../../spec/axis_parts.ts";
import { groupRanks, groupSizeOf } from "../../spec/mesh.ts";
import { tableIds, tableLengths, tableStarts } from "../../spec/table.ts";
import type { Size } from "../../spec/size.ts";
import type { LocalAxis } from "./local_axes.ts";
import type { Placed } from "./placed.ts";

/** The name of an axis in the plan. */
export function planAxis({ aliases }: Placed, axis: string): string {
  return aliases[axis] ?? axis;
}

/** The number of items of an axis per group rank over its mesh axes. Undefined without a table. */
export function partLengths(
  { mesh }: Pick<Placed, "mesh">,
  { table, over, total: size }: LocalAxis,
): number[] | undefined {
  return table && tableLengths({ size, table }, groupSizeOf(mesh, over));
}

/** The first item of an axis with a table, per group rank over its mesh axes. */
export function partStarts(
  { mesh }: Pick<Placed, "mesh">,
  { table, over, total: size }: LocalAxis,
): number[] {
  return tableStarts({ size, table: table! }, groupSizeOf(mesh, over));
}

/** Whether ranks have different numbers of items of an axis. */
export function isUneven(
  { mesh }: Pick<Placed, "mesh">,
  axis: LocalAxis | undefined,
): boolean {
  if (!axis?.table) return false;
  const { table, over, total } = axis;
  return typeof table === "object"
    ? table.some(({ length }) => length !== table[0]!.length)
    : total % groupSizeOf(mesh, over) !== 0;
}

/** The items of an axis at one group rank over its mesh axes. */
export function idsAt(
  { mesh }: Pick<Placed, "mesh">,
  { table, over, total: size }: LocalAxis,
  groupRank: number,
): readonly number[] {
  return table
    ? tableIds({ size, table }, groupSizeOf(mesh, over), groupRank)
    : Array.from({ length: size }, (_, id) => id);
}

/** The length of an axis on each rank, or its maximum. */
export function localBound(placed: Placed, axis: string): number[] {
  const { total, over } = placed.axes[axis]!;
  const { mesh, ranks } = placed;
  const lengths = partBounds(placed, { ...placed.axes[axis]!, size: total });
  if (lengths.every((length) => length === lengths[0])) {
    return new Array<number>(ranks).fill(lengths[0]!);
  }
  return groupRanks(mesh, over).map((groupRank) => lengths[groupRank]!);
}

/** The maximum length of an axis over the ranks of one group. */
export function groupBound(
  placed: Placed,
  axis: string,
  over: readonly string[],
): number {
  const { size, assignment, over: axisOver } = placed.axes[axis]!;
  const bounded = assignment?.by === "blocks" ||
    assignment?.by === "items" && assignment.each !== undefined;
  if (axisOver.length === 0 || !bounded) return size;
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

/** The dynamic length of an axis on a rank, or over a group, as known to the host. */
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
