/** Drafts by another, smaller model: its most likely tokens, one step of its decoder for each. */

import { DataError } from "../../../spec/errors.ts";
import type { Decoder } from "../decoder.ts";
import { packTokens } from "../packing.ts";
import { lengthOf, tokenOf } from "../schedule.ts";
import type { Drafted, Drafter } from "./speculation.ts";

const KIND = { name: "draft model", assumed: 0.7 } as const;

/** A sequence in the caches of the draft model. */
interface Slot {
  sequence: Drafted | undefined;
  /** Tokens in the caches; drafted ones may differ from the sequence. */
  fed: number[];
  /** Number of them that are equal to the sequence. */
  equal: number;
  /** Number of the last call that used it. */
  used: number;
}

/** Tokens to feed. */
interface Feed {
  readonly slot: number;
  readonly ids: readonly number[];
}

/**
 * Creates a drafter. It needs a slot per sequence of the model that it drafts for; otherwise the least recently used
 * sequence is fed again.
 *
 * @param decoder its plan returns candidates
 * @param vocabulary number of tokens of the model that it drafts for
 */
export function modelDrafter(decoder: Decoder, vocabulary: number): Drafter {
  const { shape } = decoder;
  if (shape.recurrent) {
    throw new DataError(
      "Cannot draft with this checkpoint: its recurrent states contain every fed token, so rejected ones cannot be removed. Give a checkpoint with attention only",
    );
  }
  if (shape.vocabulary < vocabulary) {
    throw new DataError(
      `Cannot draft with this checkpoint: its vocabulary has ${shape.vocabulary} tokens, and the model's ${vocabulary}. Give a checkpoint with the same tokenizer`,
    );
  }
  const slots = Array.from({ length: shape.maxSequences }, (): Slot => ({
    sequence: undefined,
    fed: [],
    equal: 0,
    used: 0,
  }));
  let calls = 0;

  function slotOf(sequence: Drafted): number {
    const known = slots.findIndex((slot) => slot.sequence === sequence);
    const at = known >= 0 ? known : slots.reduce(
      (oldest, { used }, i) => used < slots[oldest]!.used ? i : oldest,
      0,
    );
    const slot = slots[at]!;
    if (known < 0) Object.assign(slot, { sequence, fed: [], equal: 0 });
    slot.used = calls;
    return at;
  }

  /** Feeds tokens after the equal ones, and returns the next token of each slot. */
  async function feed(feeds: readonly Feed[]): Promise<number[]> {
    const ends: number[] = [];
    const parts = feeds.map(({ slot, ids }) => {
      const { fed } = slots[slot]!;
      const first = fed.length;
      fed.push(...ids);
      ends.push((ends.at(-1) ?? -1) + ids.length);
      return { slot, first, ids };
    });
    const next = await decoder.next(packTokens(parts), ends, { needed: 1 });
    return next.map(({ ids }) => ids![0]!);
  }

  return {
    kindOf: (sequence) =>
      lengthOf(sequence) <= shape.maxContext ? KIND : undefined,
    draft: async (wanted) => {
      calls++;
      let room = shape.maxTokens;
      const drafts = wanted.map((): number[] => []);
      let growing: { readonly i: number; readonly slot: number }[] = [];
      const feeds: Feed[] = [];
      for (const [i, { sequence }] of wanted.entries()) {
        const slot = slotOf(sequence);
        const missing = missingOf(slots[slot]!, sequence);
        const ids = missing.slice(0, room);
        if (ids.length === 0) continue;
        room -= ids.length;
        feeds.push({ slot, ids });
        growing.push({ i, slot });
        if (ids.length < missing.length) room = 0;
      }
      const isFed = ({ i, slot }: { i: number; slot: number }) =>
        slots[slot]!.fed.length >= lengthOf(wanted[i]!.sequence);
      let next = feeds.length > 0 ? await feed(feeds) : [];
      for (;;) {
        growing = growing.filter((one, at) => {
          const token = next[at]!;
          const draft = drafts[one.i]!;
          if (!isFed(one) || token >= vocabulary) return false;
          draft.push(token);
          return draft.length < wanted[one.i]!.count &&
            slots[one.slot]!.fed.length < shape.maxContext;
        });
        if (growing.length === 0) return drafts;
        next = await feed(
          growing.map(({ i, slot }) => ({ slot, ids: drafts[i]!.slice(-1) })),
        );
      }
    },
  };
}

/** The tokens of a sequence that are not in its slot, which is truncated to equal tokens. */
function missingOf(slot: Slot, sequence: Drafted): number[] {
  const length = lengthOf(sequence);
  while (
    slot.equal < Math.min(slot.fed.length, length) &&
    slot.fed[slot.equal] === tokenOf(sequence, slot.equal)
  ) slot.equal++;
  // The last token is fed again if it was: the next one follows it.
  slot.equal = Math.min(slot.equal, length - 1);
  slot.fed.length = slot.equal;
  return Array.from(
    { length: length - slot.equal },
    (_, i) => tokenOf(sequence, slot.equal + i),
  );
}
