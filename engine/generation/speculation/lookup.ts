/** Prompt lookup: proposes the tokens that followed the last ones earlier in the same sequence. */

import { lengthOf, tokenOf } from "../schedule.ts";
import type { Drafted, Drafter } from "./speculation.ts";

/** Number of earlier indices to compare. */
const COMPARED = 8;

/** Kinds of drafts, by the length of the match, descending. */
const KINDS = ([[16, 0.95], [8, 0.8], [4, 0.65], [2, 0.5]] as const).map((
  [length, assumed],
) => ({ length, name: `match of ${length}`, assumed }));

/** Longest match that is distinguished. */
const LONGEST = KINDS[0]!.length;

/** Tokens of one sequence, and where each pair of them occurs. */
class Occurrences {
  readonly #tokens: number[] = [];
  /** Indices after each pair of tokens, ascending, at most `COMPARED`. */
  readonly #after = new Map<number, number[]>();

  /** Adds the tokens that are new in a sequence. */
  follow(sequence: Drafted): void {
    const known = this.#tokens;
    const length = lengthOf(sequence);
    while (known.length < length) {
      const at = known.length;
      if (at >= 2) this.#note(pairOf(known[at - 2]!, known[at - 1]!), at);
      known.push(tokenOf(sequence, at));
    }
  }

  #note(pair: number, at: number): void {
    const indices = this.#after.get(pair);
    if (!indices) this.#after.set(pair, [at]);
    else if (indices.push(at) > COMPARED) indices.shift();
  }

  /**
   * The index after the longest earlier match of the last tokens, the latest of equal ones. Undefined without a pair.
   */
  match(): { readonly at: number; readonly length: number } | undefined {
    const known = this.#tokens;
    const end = known.length;
    if (end < 2) return undefined;
    const indices = this.#after.get(pairOf(known[end - 2]!, known[end - 1]!));
    let best: { at: number; length: number } | undefined;
    for (const at of indices ?? []) {
      let length = 2;
      while (
        length < LONGEST && length < at &&
        known[at - 1 - length] === known[end - 1 - length]
      ) length++;
      if (length >= (best?.length ?? 0)) best = { at, length };
    }
    return best;
  }

  /** The tokens from an index on; after the last one, a repetition of these. */
  from(at: number, count: number): number[] {
    const made: number[] = [];
    for (let i = 0; i < count; i++) {
      made.push(this.#tokens[at + i] ?? made[at + i - this.#tokens.length]!);
    }
    return made;
  }
}

/** Token ids are less than 2^26, so a pair is an exact number. */
function pairOf(first: number, second: number): number {
  return first * 2 ** 26 + second;
}

/** Creates a drafter that looks up earlier tokens of the same sequence. */
export function lookupDrafter(): Drafter {
  const all = new WeakMap<Drafted, Occurrences>();
  const known = (sequence: Drafted) => {
    const found = all.get(sequence) ?? new Occurrences();
    all.set(sequence, found);
    found.follow(sequence);
    return found;
  };
  return {
    kindOf: (sequence) => {
      const match = known(sequence).match();
      return match && KINDS.find(({ length }) => length <= match.length);
    },
    draft: (wanted) =>
      Promise.resolve(wanted.map(({ sequence, count }) => {
        const found = known(sequence);
        return found.from(found.match()!.at, count);
      })),
  };
}
