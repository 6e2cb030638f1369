/** What both comparisons share. */

import { median } from "../measure.ts";

/** How to compare. */
export interface Run {
  /** Threads of each side, at most. */
  readonly threads: number;
  /** Measured runs of each side, taken in turn. */
  readonly pairs: number;
  /** Runs of each side before those. */
  readonly warmUp: number;
  /** A folder for files, removed afterwards. */
  readonly folder: string;
  /** Versions of the peers. */
  readonly versions: { readonly [name: string]: string };
}

/** The greatest difference, as a part of the greatest expected value. Throws if it is more than allowed. */
export function checkClose(
  actual: Float32Array,
  expected: Float32Array,
  { what, tolerance }: { readonly what: string; readonly tolerance: number },
): number {
  if (actual.length !== expected.length) {
    throw new Error(
      `Cannot compare ${what}: ${actual.length} values against ${expected.length}. Mend the benchmark`,
    );
  }
  let [difference, greatest] = [0, 0];
  expected.forEach((value, i) => {
    // Not Math.max: a NaN must not get lost.
    const apart = Math.abs(actual[i]! - value);
    if (!(apart <= difference)) difference = apart;
    if (Math.abs(value) > greatest) greatest = Math.abs(value);
  });
  const error = difference / greatest;
  if (error <= tolerance) return error;
  throw new Error(
    `Cannot compare ${what}: results differ by ${error} of the greatest value, and ${tolerance} is allowed. The two sides do not compute the same`,
  );
}

/** How fast we are against them, from times taken in turn: the ratio of medians, and the spread over pairs. */
export function ratioOf(
  { ours, theirs }: {
    readonly ours: readonly number[];
    readonly theirs: readonly number[];
  },
): string {
  const pairs = ours.map((time, i) => theirs[i]! / time);
  return `${(median(theirs) / median(ours)).toFixed(2)}x (pairs: median ${
    median(pairs).toFixed(2)
  }, ${Math.min(...pairs).toFixed(2)} to ${Math.max(...pairs).toFixed(2)})`;
}
