/** Shared code of both comparisons. */

import type { Result } from "../results.ts";

/** Options of a comparison. */
export interface Run {
  /** Maximum threads of each side. */
  readonly threads: number;
  /** The clock in ms. */
  readonly now: () => number;
  /** Measured interleaved runs of each side. */
  readonly pairs: number;
  /** Warm-up runs of each side. */
  readonly warmUp: number;
  /** A folder for files, removed afterwards. */
  readonly folder: string;
  /** Versions of the other projects. */
  readonly versions: { readonly [name: string]: string };
}

/** The results of a comparison. */
export type Compared = Pick<Result, "works" | "ratios" | "notes">;

/** Returns the largest difference, relative to the largest expected value. Throws if it is above the tolerance. */
export function checkClose(
  actual: Float32Array,
  expected: Float32Array,
  { what, tolerance }: { readonly what: string; readonly tolerance: number },
): number {
  if (actual.length !== expected.length) {
    throw new Error(
      `Cannot compare ${what}: ${actual.length} values against ${expected.length}. Correct the benchmark`,
    );
  }
  let [difference, greatest] = [0, 0];
  expected.forEach((value, i) => {
    // Not Math.max, which would hide a NaN here.
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
