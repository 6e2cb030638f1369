/**
 * Steps ahead: while a device computes the best next tokens of all sequences, the host starts the step after it. The device
 * reads these tokens from its own memory, so that it does not wait for the host. A token that follows the end of a
 * sequence is discarded.
 */

import type { SequenceOptions } from "./batch.ts";
import { packTaken, type Taken } from "./packing.ts";
import { candidatesOf } from "./sampling.ts";
import {
  type BatchState,
  lengthOf,
  type Scheduled,
  type StepTokens,
} from "./schedule.ts";

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
  { slots, waiting, pages }: BatchState<S>,
  growing: readonly S[],
  maxContext: number,
): AheadTokens | undefined {
  const live = [...slots.entries()].filter(([, sequence]) => sequence);
  const slotOf = new Map(live.map(([slot, sequence]) => [sequence!, slot]));
  const ready = new Set(growing);
  const room = live.length * (pages?.size ?? 0);
  const isReady = ([slot, sequence]: [number, S | undefined]) =>
    ready.has(sequence!) && isGreedy(sequence!) &&
    (pages?.hasRoom(slot, room) ?? true);
  const isFull = live.length === slots.length;
  if (waiting.length > 0 && !isFull || !live.every(isReady)) return undefined;
  const taken: Taken[] = [];
  const rows: number[] = [];
  for (const [row, sequence] of growing.entries()) {
    const slot = slotOf.get(sequence);
    const { tokens, options, fed } = sequence;
    const ends = tokens.length + 1 >= options.maxNewTokens ||
      lengthOf(sequence) >= maxContext;
    if (slot === undefined || ends) continue;
    pages?.advance(slot, fed);
    pages?.assign(slot, fed, undefined);
    sequence.fed++;
    taken.push({ slot, id: 0, at: fed });
    rows.push(row);
  }
  return taken.length === 0 ? undefined : {
    ends: taken.map((_, i) => i),
    prompted: 0,
    fed: rows,
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
