/** Tables of placed axes: the global ids of each group rank over the mesh axes. */

import type { Natural } from "./values.ts";

/**
 * The ids of each of n group ranks, in local order: `block`, contiguous ones, ⌈size / n⌉ each, with fewer on the
 * last group ranks; `cyclic`, id i on group rank i mod n; or a list per group rank.
 */
export type Table = "block" | "cyclic" | readonly (readonly Natural[])[];

/** An axis with a table. */
export interface TabledAxis {
  readonly size: number;
  readonly table: Table;
}

/** Number of ids of each group rank. */
export function tableLengths(axis: TabledAxis, groupSize: number): number[] {
  return Array.from(
    { length: groupSize },
    (_, at) => tableLength(axis, groupSize, at),
  );
}

/** Number of ids of one group rank. */
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

/** The first id of each group rank; 0 if it has none. */
export function tableStarts(axis: TabledAxis, groupSize: number): number[] {
  return Array.from(
    { length: groupSize },
    (_, at) => tableStart(axis, groupSize, at),
  );
}

/** The first id of one group rank; 0 if it has none. */
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
