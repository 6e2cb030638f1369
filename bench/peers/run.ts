/** What both comparisons share. */

import type { Result } from "../results.ts";

/** How to compare. */
export interface Run {
  /** Threads of each side, at most. */
  readonly threads: number;
  /** The clock, in ms. */
  readonly now: () => number;
  /** Measured runs of each side, interleaved. */
  readonly pairs: number;
  /** Runs of each side before those. */
  readonly warmUp: number;
  /** A folder for files, removed afterwards. */
  readonly folder: string;
  /** Versions of the peers. */
  readonly versions: { readonly [name: string]: string };
}

/** What a comparison found. */
export type Compared = Pick<Result, "works" | "ratios" | "notes">;

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
