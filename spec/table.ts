/** Tables of placed axes: which global ids each group rank over the mesh axes holds. */

import type { Natural } from "./values.ts";

/**
 * Which ids each of n group ranks holds, in local order: `block`, contiguous ones, ⌈size / n⌉ each, of which the last
 * group ranks may have fewer; `cyclic`, id i at group rank i mod n; or a list for each group rank.
 */
export type Table = "block" | "cyclic" | readonly (readonly Natural[])[];

/** An axis with a table. */
export interface TabledAxis {
  readonly size: number;
  readonly table: Table;
}

/** How many ids each group rank holds. */
export function tableLengths(axis: TabledAxis, groupSize: number): number[] {
  return Array.from(
    { length: groupSize },
    (_, at) => tableLength(axis, groupSize, at),
  );
}

/** How many ids one group rank holds. */
export function tableLength(
  { size, table }: TabledAxis,
  groupSize: number,
  groupRank: number,
): number {
  if (typeof table === "object") return table[groupRank]!.length;
  const each = Math.ceil(size / groupSize);
  return table === "block"
    ? Math.max(0, Math.min(each, size - groupRank * each))
    : Math.max(0, Math.ceil((size - groupRank) / groupSize));
}

/** The ids of one group rank. */
export function tableIds(
  axis: TabledAxis,
  groupSize: number,
  groupRank: number,
): readonly number[] {
  const { size, table } = axis;
  if (typeof table === "object") return table[groupRank]!;
  const length = tableLength(axis, groupSize, groupRank);
  const each = Math.ceil(size / groupSize);
  return Array.from(
    { length },
    (_, i) =>
      table === "block" ? groupRank * each + i : groupRank + i * groupSize,
  );
}

/** The first id of each group rank; 0 where it has none. */
export function tableStarts(axis: TabledAxis, groupSize: number): number[] {
  return Array.from(
    { length: groupSize },
    (_, at) => tableStart(axis, groupSize, at),
  );
}

/** The first id of one group rank; 0 where it has none. */
export function tableStart(
  axis: TabledAxis,
  groupSize: number,
  groupRank: number,
): number {
  const { size, table } = axis;
  if (typeof table === "object") return table[groupRank]![0] ?? 0;
  if (tableLength(axis, groupSize, groupRank) === 0) return 0;
  return table === "block"
    ? groupRank * Math.ceil(size / groupSize)
    : groupRank;
}
