/** Loads from workgroup memory that do not wait for each other. */

import { range } from "../../../spec/range.ts";

/** Maximum number of values that a lane loads before it uses the first. */
const MAX_LOADS = 16;

/** How many of `count` values are loaded at once: the largest divisor that `fits`. */
export function loadsAtOnce(
  count: number,
  fits: (n: number) => boolean = () => true,
): number {
  const sizes = range(MAX_LOADS).map((n) => MAX_LOADS - n);
  return sizes.find((n) => count % n === 0 && fits(n)) ?? 1;
}
