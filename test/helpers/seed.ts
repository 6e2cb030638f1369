/**
 * Seed of all random cases of a run. Drawn on each run and printed when a property fails; `SEED=1234 npm test -- FILE`
 * repeats it.
 */

import process from "node:process";
import fc from "fast-check";
import type { Test } from "tap";

/** Seed of this run. */
export const SEED = seedOf(process.env["SEED"]);

fc.configureGlobal({ seed: SEED });

function seedOf(text: string | undefined): number {
  if (text === undefined) {
    return crypto.getRandomValues(new Int32Array(1))[0]!;
  }
  if (!/^-?\d{1,10}$/.test(text)) {
    throw new Error(`Cannot use SEED '${text}': give a whole number`);
  }
  return Number(text) | 0;
}

/** Seed of a rotation within another: independent of rotations of 2, 3, 4, 6 and 12 cases by `SEED`. */
export const INNER_SEED = Math.floor(Math.abs(SEED) / 12);

/**
 * Seed of the rotations of files (scripts/test_files.mjs) and of tests on a software GPU: independent of the others.
 */
const OUTER_SEED = Math.imul(SEED, 0x9e3779b1) >>> 16;

/** Whether case `i` runs of a rotation around others: one of `every`, by `SEED`. With `TURNS=all`: all. */
export function isInOuterTurn(i: number, every: number): boolean {
  return ALL || (OUTER_SEED + i) % every === 0;
}

/** Runs in which each test runs once on a software GPU. 5 has no common factor with the rotation of files. */
const SOFTWARE_TURNS = 5;

/** Whether a test runs on a software GPU: in a fifth of runs, by its name and `SEED`. With `TURNS=all`: always. */
export function isInSoftwareTurn(name: string): boolean {
  const hash = [...name].reduce((n, c) => (n * 31 + c.charCodeAt(0)) >>> 0, 7);
  return isInOuterTurn(hash, SOFTWARE_TURNS);
}

/** Factor of the numbers of random cases: `RUNS=10 npm test -- FILE`. */
export const RUNS = Number(process.env["RUNS"] ?? 1);

const ALL = process.env["TURNS"] === "all";

/** Whether case `i` of a rotation runs: one of `every`, by `SEED`. With `TURNS=all`: all. */
export function isInTurn(i: number, every: number): boolean {
  return ALL || (Math.abs(SEED) + i) % every === 0;
}

/** Returns the cases of a rotation that run: one of `every`, by `SEED`. With `TURNS=all`: all. */
export function inTurn<T>(cases: readonly T[], every: number): readonly T[] {
  return cases.filter((_, i) => isInTurn(i, every));
}

/** Returns one case, by `INNER_SEED`. With `TURNS=all`: all. */
export function oneInTurn<T>(cases: readonly T[]): readonly T[] {
  return cases.filter((_, i) => ALL || (INNER_SEED + i) % cases.length === 0);
}

/** Returns one case that can run, by `INNER_SEED`, and all skipped cases. With `TURNS=all`: all. */
export function ableInTurn<T extends { readonly skip: false | string }>(
  cases: readonly T[],
): readonly T[] {
  return [
    ...oneInTurn(cases.filter(({ skip }) => !skip)),
    ...cases.filter(({ skip }) => skip),
  ];
}

/** Instruction to repeat a failure. */
export function repeatWith(): string {
  return `Repeat it with SEED=${SEED}`;
}

/**
 * Checks a property whose checks are assertions of `t`. Stops at the first failing case and reports it with the seed.
 */
export async function holdsFor<T>(
  t: Test,
  values: fc.Arbitrary<T>,
  { check, runs }: {
    readonly check: (value: T) => Promise<void>;
    readonly runs: number;
  },
): Promise<void> {
  const result = await fc.check(
    fc.asyncProperty(values, async (value) => {
      await check(value);
      if (!t.passing()) throw new Error("an assertion failed");
    }),
    { numRuns: runs * RUNS, endOnFailure: true },
  );
  if (!result.failed) return;
  const reason = result.errorInstance instanceof Error
    ? result.errorInstance.message
    : String(result.errorInstance);
  throw new Error(
    `${reason}\n${fc.defaultReportMessage(result)}\n${repeatWith()}`,
    { cause: result.errorInstance },
  );
}
