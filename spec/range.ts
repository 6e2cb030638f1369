/** Ranges of integers. */

/** The numbers from 0 below `count`, with step `step`. */
export function range(count: number, step = 1): number[] {
  return Array.from({ length: count / step }, (_, i) => i * step);
}
