/**
 * Fuzzing: a class draws cases from a seed and judges each. A finding is a case that was judged to be one; it is made as
 * small as fast-check can make it, and written to a file that judges it again.
 */

import fc from "fast-check";

/** Something that is fuzzed: one file of this folder each, listed in `classes.ts`. */
export interface FuzzClass<Case> {
  readonly name: string;
  /** Cases in a run whose number is not given. */
  readonly count: number;
  /** Cases that are drawn and judged together, at most. Default: 1. */
  readonly together?: number;
  /** What is tried. A case is JSON, so that it can be tried again. */
  readonly cases: fc.Arbitrary<Case>;
  /** Judge a case, or some together: what became of each, in few words that many share. Throws a Finding. */
  judge(of: Case): Promise<string | readonly string[]>;
  /** Files that show a finding to those who cannot judge it again, by their endings. */
  evidence?(of: Case): Promise<{ readonly [ending: string]: string }>;
  /** Give back what judging took. */
  close(): Promise<void>;
}

/** Thrown by `judge` of a case that is a finding. */
export class Finding extends Error {
  override readonly name = "Finding";
}

/** A case that was judged to be a finding, or that broke the judging. */
export interface Found<Case> {
  readonly case: Case;
  readonly message: string;
}

/** How a class is fuzzed. */
export interface FuzzOptions {
  readonly seed: number;
  /** Cases; default: as the class says, or as many as the time is enough for. */
  readonly count?: number;
  readonly minutes?: number;
  /** Findings after which it ends. Default: 10. */
  readonly findings?: number;
}

/** What became of the cases. */
export interface FuzzReport<Case> {
  readonly tried: number;
  /** Cases by what became of them. */
  readonly outcomes: ReadonlyMap<string, number>;
  readonly found: readonly Found<Case>[];
}

/** Draw and judge cases until there are enough, or enough findings, or the time is over. */
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

/** `1000 tried: 640 refused by reads, 360 same bytes; 0 findings`, the most frequent first. */
export function reportText(
  { tried, outcomes, found }: FuzzReport<unknown>,
): string {
  const parts = [...outcomes].sort(([, a], [, b]) => b - a)
    .map(([outcome, n]) => `${n} ${outcome}`);
  return `${tried} tried: ${parts.join(", ")}; ${found.length} finding${
    found.length === 1 ? "" : "s"
  }`;
}
