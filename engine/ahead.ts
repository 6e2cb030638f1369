/**
 * Steps ahead: while a device computes the best next tokens of all sequences, the host starts the step after it. The device
 * reads these tokens from its own memory, so that it does not wait for the host. A token that follows the end of a
 * sequence is discarded.
 */

import { candidatesOf, type SamplingOptions } from "./sampling.ts";
import type { BatchState, Scheduled, StepTokens } from "./schedule.ts";

/** A scheduled sequence with its options. */
interface Sequence extends Scheduled {
  readonly cancelled: boolean;
  readonly options: SamplingOptions & {
    readonly maxNewTokens: number;
    readonly forced?: readonly number[];
    readonly receipt?: boolean;
    readonly experts?: boolean;
  };
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
  const room = live.length * (pages?.size ?? 0);
  const isReady = ([slot, sequence]: [number, S | undefined]) =>
    growing.includes(sequence!) && isGreedy(sequence!) &&
    (pages?.hasRoom(slot, room) ?? true);
  const isFull = live.length === slots.length;
  if (waiting.length > 0 && !isFull || !live.every(isReady)) return undefined;
  const taken: { slot: number; at: number; row: number }[] = [];
  for (const [row, sequence] of growing.entries()) {
    const slot = slots.indexOf(sequence);
    const { prompt, tokens, options, fed } = sequence;
    const ends = tokens.length + 1 >= options.maxNewTokens ||
      prompt.length + tokens.length >= maxContext;
    if (slot < 0 || ends) continue;
    pages?.advance(slot, fed);
    pages?.assign(slot, fed, undefined);
    sequence.fed++;
    taken.push({ slot, at: fed, row });
  }
  return taken.length === 0 ? undefined : {
    ends: taken.map((_, i) => i),
    prompted: 0,
    fed: taken.map(({ row }) => row),
    tokens: {
      ids: new Int32Array(taken.length),
      sequence: Int32Array.from(taken, ({ slot }) => slot),
      position: Int32Array.from(taken, ({ at }) => at),
      cell: new Int32Array(taken.length),
    },
  };
}

/** Whether the next token of a sequence is the best one, and nothing else is read. */
function isGreedy(
  { cancelled, tokens, prompt, fed, options }: Sequence,
): boolean {
  return !cancelled && !options.temperature && candidatesOf(options) === 1 &&
    !options.receipt && !options.experts &&
    fed === prompt.length + tokens.length &&
    (options.forced?.length ?? 0) <= tokens.length;
}
