/** Rows grouped by expert on the host, for peers whose operators cannot. */

/** A stable sort by expert: which choices follow each other, where each went, how many each expert has. */
export interface Grouped {
  readonly order: Int32Array;
  readonly home: Int32Array;
  readonly counts: readonly number[];
}

/** Group choices of experts. */
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
  const home = new Int32Array(index.length);
  for (let i = 0; i < index.length; i++) {
    const at = next[index[i]!]!++;
    order[at] = i;
    home[i] = at;
  }
  return { order, home, counts };
}
