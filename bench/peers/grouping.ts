/** Groups rows by expert on the host, for projects without an operator for this. */

/** A stable sort by expert: the order of choices, the position of each choice, and the count of each expert. */
export interface Grouped {
  readonly order: Int32Array;
  readonly choiceRow: Int32Array;
  readonly counts: readonly number[];
}

/** Groups choices of experts. */
export function groupByExpert(
  index: ArrayLike<number>,
  experts: number,
): Grouped {
  const counts = new Array<number>(experts).fill(0);
  for (let i = 0; i < index.length; i++) counts[index[i]!]!++;
  const next = counts.map((_, e) =>
    counts.slice(0, e).reduce((sum, count) => sum + count, 0)
  );
  const order = new Int32Array(index.length);
  const choiceRow = new Int32Array(index.length);
  for (let i = 0; i < index.length; i++) {
    const at = next[index[i]!]!++;
    order[at] = i;
    choiceRow[i] = at;
  }
  return { order, choiceRow, counts };
}
