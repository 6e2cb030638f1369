/** Sums of numbers on the host. */

/** The sum of some numbers, added in order. */
export function sum(values: Iterable<number>): number {
  let total = 0;
  for (const value of values) total += value;
  return total;
}
