/** How much room a plan has: tokens of a step, sequences, positions. */

import type { Pages } from "../compiler/mod.ts";
import type { Bounds } from "../models/mod.ts";
import { sum } from "../spec/sum.ts";

/** Tokens of one step unless more are asked for; longer prompts are fed in several steps. */
const STEP_TOKENS = 512;

/** What is to be run, where that is known. */
export interface Need {
  readonly tokens: number;
  readonly sequences: number;
  readonly context: number;
  /** Positions of each sequence, with what is to follow: their caches are then in pages, as many as they need. */
  readonly lengths?: readonly number[];
}

/**
 * Bounds as given, else enough for the need, in powers of two, so that similar runs share their kernels; positions, which
 * take memory whether or not they are used, are at most an eighth more.
 */
export function chooseBounds(
  need: Need,
  given: Partial<Bounds>,
  maxPositions: number,
): Bounds {
  return {
    maxTokens: given.maxTokens ??
      Math.min(STEP_TOKENS, powerOfTwo(Math.max(need.tokens, 64))),
    maxSequences: given.maxSequences ?? powerOfTwo(need.sequences),
    maxContext: given.maxContext ??
      Math.min(maxPositions, eighthsOfPower(Math.max(need.context, 256))),
  };
}

/** Bounds for a plan that is made before anything is known of its use. */
export function defaultBounds(
  given: Partial<Bounds>,
  maxPositions: number,
): Bounds {
  return chooseBounds(
    {
      tokens: STEP_TOKENS,
      sequences: 8,
      context: Math.min(maxPositions, 4096),
    },
    given,
    maxPositions,
  );
}

/** Positions of a page: those that attention looks up at once. */
const PAGE = 32;

/** Pages of a rank for the longest sequences that can be there at once; sequences are sharded over `groupSize` ranks. */
export function choosePages(
  lengths: readonly number[],
  { maxSequences, maxContext }: Bounds,
  groupSize: number,
): Pages {
  const pagesOf = (length: number) =>
    Math.ceil(Math.min(length, maxContext) / PAGE);
  const longest = lengths.toSorted((a, b) => b - a)
    .slice(0, Math.ceil(maxSequences / groupSize));
  // A sequence may have as many positions as there are, whatever is known of it.
  return {
    count: Math.max(pagesOf(maxContext), sum(longest.map(pagesOf))),
    size: PAGE,
  };
}

function powerOfTwo(least: number): number {
  return 2 ** Math.ceil(Math.log2(Math.max(1, least)));
}

/** The next multiple of an eighth of the power of two below. */
function eighthsOfPower(least: number): number {
  const eighth = 2 ** (Math.floor(Math.log2(least)) - 3);
  return Math.ceil(least / eighth) * eighth;
}
