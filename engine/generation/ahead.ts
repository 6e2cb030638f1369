/**
 * Steps ahead of the host, which feed the best tokens of the step before from the memory of the device. While a GPU
 * computes a step, the host starts the next one. A CPU device runs several steps in series. A token that follows the
 * end of a sequence is discarded.
 */

import { invariant } from "../../spec/errors.ts";
import { packTaken, type Taken } from "./packing.ts";
import { candidatesOf } from "./sampling.ts";
import {
  type BatchState,
  lengthOf,
  type Scheduled,
  type StepTokens,
} from "./schedule.ts";
import type { SequenceOptions } from "./sequence.ts";

/** A scheduled sequence with its options. */
interface Sequence extends Scheduled {
  readonly cancelled: boolean;
  readonly options: SequenceOptions;
}

/** A step whose tokens are results of the step before. */
export interface AheadTokens extends StepTokens {
  /** For each token, the row of the result that contains it. */
  readonly fed: readonly number[];
}

/**
 * The step after the only one in flight, whose sequences are `growing` in the order of its ends. Undefined if another
 * step may have to come first, if a next token is not the best one, or if there are too few pages.
 */
export function stepAhead<S extends Sequence>(
  state: BatchState<S>,
  growing: readonly S[],
  maxContext: number,
): AheadTokens | undefined {
  if (!areReady(state, growing)) return undefined;
  const rows = [...growing.keys()].filter((row) =>
    state.slots.includes(growing[row]) &&
    maxAhead(growing[row]!, maxContext) > 0
  );
  const continued = rows.map((row) => growing[row]!);
  for (const sequence of continued) {
    state.pages?.advance(state.slots.indexOf(sequence), sequence.fed);
  }
  return rows.length > 0 && havePages(state, continued)
    ? { ...takeAhead(state, continued), fed: rows }
    : undefined;
}

/**
 * At most `count` steps of all `growing` sequences after a step with one token of each, fewer if there are too few
 * pages. None if another step may have to come first, or if a next token is not the best one.
 */
export function stepsAhead<S extends Sequence>(
  state: BatchState<S>,
  growing: readonly S[],
  { maxContext, count }: {
    readonly maxContext: number;
    readonly count: number;
  },
): StepTokens[] {
  const length = Math.min(
    count,
    ...growing.map((sequence) => maxAhead(sequence, maxContext)),
  );
  if (length <= 0 || !areReady(state, growing)) return [];
  const steps: StepTokens[] = [];
  while (steps.length < length && havePages(state, growing)) {
    steps.push(takeAhead(state, growing));
  }
  return steps;
}

/** Maximum steps of a sequence after the one in flight. */
function maxAhead(sequence: Sequence, maxContext: number): number {
  const { tokens, options } = sequence;
  return Math.min(
    options.maxNewTokens - tokens.length - 1,
    maxContext - lengthOf(sequence),
  );
}

/** Whether the next step has exactly the best tokens of `growing`. */
function areReady<S extends Sequence>(
  { slots, waiting }: BatchState<S>,
  growing: readonly S[],
): boolean {
  const ready = new Set(growing);
  const live = slots.filter((sequence) => sequence).length;
  const isFull = live === slots.length;
  return (waiting.length === 0 || isFull) &&
    slots.every((sequence) =>
      !sequence || ready.has(sequence) && isGreedy(sequence)
    );
}

/** Allocates the pages of the next token of each sequence. Returns false if there are too few. */
function havePages<S extends Sequence>(
  { slots, pages }: BatchState<S>,
  sequences: readonly S[],
): boolean {
  return sequences.every((sequence) =>
    pages?.reserve(slots.indexOf(sequence), sequence.fed) ?? true
  );
}

/** Feeds the next token of each sequence, which only the device has. */
function takeAhead<S extends Sequence>(
  { slots, pages }: BatchState<S>,
  sequences: readonly S[],
): StepTokens {
  const taken = sequences.map((sequence): Taken => {
    const [slot, at] = [slots.indexOf(sequence), sequence.fed];
    invariant(pages?.assign(slot, at, undefined) ?? true, "no page is left");
    sequence.fed++;
    return { slot, id: 0, at };
  });
  return {
    ends: taken.map((_, i) => i),
    prompted: 0,
    tokens: packTaken(taken),
  };
}

/** Whether the next token of a sequence is the best one, and nothing else is read. */
function isGreedy(sequence: Sequence): boolean {
  const { cancelled, tokens, fed, options } = sequence;
  return !cancelled && candidatesOf(options) === 1 && !options.receipt &&
    !options.experts && fed === lengthOf(sequence) &&
    (options.forced?.length ?? 0) <= tokens.length;
}
