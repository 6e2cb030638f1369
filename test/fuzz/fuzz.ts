/**
 * Fuzzer: a class draws cases from a seed and judges each. fast-check shrinks findings, which are written to files that
 * reproduce them.
 */

import fc from "fast-check";

/** A fuzzed property: one file of this folder each, listed in `classes.ts`. */
export interface FuzzClass<Case> {
  readonly name: string;
  /** Default number of cases. */
  readonly count: number;
  /** Maximum cases drawn and judged at once. Default: 1. */
  readonly together?: number;
  /** Generator of cases. Cases are JSON, so that files can reproduce them. */
  readonly cases: fc.Arbitrary<Case>;
  /** Judges a case, or several at once. Returns the outcome of each, in few words. Throws Finding. */
  judge(of: Case): Promise<string | readonly string[]>;
  /** Returns files that document a finding, by file ending. */
  evidence?(of: Case): Promise<{ readonly [ending: string]: string }>;
  /** Releases resources. */
  close(): Promise<void>;
}

/** Thrown by `judge`: the case is a finding. */
export class Finding extends Error {
  override readonly name = "Finding";
}

/** A case that is a finding, or whose judging failed. */
export interface Found<Case> {
  readonly case: Case;
  readonly message: string;
}

export interface FuzzOptions {
  readonly seed: number;
  /** Number of cases. Default: unlimited with `minutes`, otherwise that of the class. */
  readonly count?: number;
  readonly minutes?: number;
  /** Number of findings after which fuzzing ends. Default: 10. */
  readonly findings?: number;
}

export interface FuzzReport<Case> {
  readonly tried: number;
  /** Number of cases by outcome. */
  readonly outcomes: ReadonlyMap<string, number>;
  readonly found: readonly Found<Case>[];
}

/** Draws and judges cases up to the limits of cases, findings and time. */
export async function fuzz<Case>(
  of: FuzzClass<Case>,
  { seed, count, minutes, findings = 10 }: FuzzOptions,
): Promise<FuzzReport<Case>> {
  const max = count ?? (minutes === undefined ? of.count : Infinity);
  const end = minutes === undefined ? Infinity : Date.now() + minutes * 60_000;
  const outcomes = new Map<string, number>();
  const found: Found<Case>[] = [];
  let tried = 0;
  for (
    let round = 0;
    tried < max && found.length < findings && Date.now() < end;
    round++
  ) {
    let shrinking = false;
    const result = await fc.check(
      fc.asyncProperty(of.cases, async (drawn) => {
        try {
          const judged = await of.judge(drawn);
          if (shrinking) return;
          for (const outcome of [judged].flat()) {
            tried++;
            outcomes.set(outcome, 1 + (outcomes.get(outcome) ?? 0));
          }
        } catch (error) {
          if (!shrinking) tried++;
          shrinking = true;
          throw error;
        }
      }),
      {
        seed: (seed + round) | 0,
        numRuns: Math.ceil(Math.min(max - tried, 1e6) / (of.together ?? 1)),
        ...Number.isFinite(end)
          ? {
            interruptAfterTimeLimit: Math.max(1, end - Date.now()),
            markInterruptAsFailure: false,
          }
          : {},
      },
    );
    if (!result.counterexample) continue;
    const [smallest] = result.counterexample;
    const error = result.errorInstance;
    const message = error instanceof Error
      ? error instanceof Finding ? error.message : error.stack ?? error.message
      : String(error);
    found.push({ case: smallest, message });
  }
  return { tried, outcomes, found };
}

/**
 * Summary of a report, with the most frequent outcomes first: `1000 tried: 640 refused by reads, 360 same bytes; 0
 * findings`.
 */
export function reportText(
  { tried, outcomes, found }: FuzzReport<unknown>,
): string {
  const parts = [...outcomes].sort(([, a], [, b]) => b - a)
    .map(([outcome, n]) => `${n} ${outcome}`);
  return `${tried} tried: ${parts.join(", ")}; ${found.length} finding${
    found.length === 1 ? "" : "s"
  }`;
}
