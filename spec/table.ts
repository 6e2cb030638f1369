/** Tables of placed axes: which global ids each position over the mesh axes holds. */

/**
 * Which ids each of n positions holds, in local order: `block`, contiguous ones, ⌈size / n⌉ each, of which the last
 * positions may have fewer; `cyclic`, id i at position i mod n; or a list for each position.
 */
export type Table = "block" | "cyclic" | readonly (readonly number[])[];

/** An axis with a table. */
export interface TabledAxis {
  readonly size: number;
  readonly table: Table;
}

/** How many ids each position holds. */
export function tableLengths(axis: TabledAxis, positions: number): number[] {
  return Array.from(
    { length: positions },
    (_, at) => tableLength(axis, positions, at),
  );
}

/** How many ids one position holds. */
export function tableLength(
  { size, table }: TabledAxis,
  positions: number,
  position: number,
): number {
  if (typeof table === "object") return table[position]!.length;
  const each = Math.ceil(size / positions);
  return table === "block"
    ? Math.max(0, Math.min(each, size - position * each))
    : Math.max(0, Math.ceil((size - position) / positions));
}

/** The ids of one position. */
export function tableIds(
  axis: TabledAxis,
  positions: number,
  position: number,
): readonly number[] {
  const { size, table } = axis;
  if (typeof table === "object") return table[position]!;
  const length = tableLength(axis, positions, position);
  const each = Math.ceil(size / positions);
  return Array.from(
    { length },
    (_, i) =>
      table === "block" ? position * each + i : position + i * positions,
  );
}

/** The first id of each position; 0 where it has none. */
export function tableStarts(axis: TabledAxis, positions: number): number[] {
  return Array.from(
    { length: positions },
    (_, at) => tableStart(axis, positions, at),
  );
}

/** The first id of one position; 0 where it has none. */
export function tableStart(
  axis: TabledAxis,
  positions: number,
  position: number,
): number {
  const { size, table } = axis;
  if (typeof table === "object") return table[position]![0] ?? 0;
  if (tableLength(axis, positions, position) === 0) return 0;
  return table === "block" ? position * Math.ceil(size / positions) : position;
}
