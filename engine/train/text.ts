/** Text as training data: one long row of tokens, cut into sequences, shuffled anew in each round. */

import { DataError } from "../../spec/errors.ts";
import { sha256 } from "../digest.ts";
import { randomNumbers } from "../sampling.ts";
import type { Tokenizer } from "../tokenizer.ts";

/** Characters that are tokenised at a time, at least; pieces end before a paragraph. */
const PIECE = 1 << 14;

/** The tokens of some texts, one after another, with `between` behind each. */
export function tokenize(
  tokenizer: Tokenizer,
  texts: readonly string[],
  between: number | undefined,
): Int32Array {
  const parts: number[][] = [];
  for (const text of texts) {
    for (let from = 0; from < text.length;) {
      const end = text.indexOf("\n\n", from + PIECE);
      const to = end < 0 ? text.length : end;
      parts.push(tokenizer.encodeBare(text.slice(from, to)));
      from = to;
    }
    if (between !== undefined) parts.push([between]);
  }
  const tokens = new Int32Array(parts.reduce((n, part) => n + part.length, 0));
  let at = 0;
  for (const part of parts) {
    tokens.set(part, at);
    at += part.length;
  }
  return tokens;
}

/** Sequences of one length, and the token behind each of their tokens. */
export class TextRows {
  /** Sequences of a round; what is left over at the end is not used. */
  readonly rows: number;
  readonly #tokens: Int32Array;
  readonly #length: number;
  readonly #seed: number;
  #round = -1;
  #order: Int32Array = new Int32Array(0);

  constructor(
    tokens: Int32Array,
    { length, seed }: { readonly length: number; readonly seed: number },
  ) {
    this.#tokens = tokens;
    this.#length = length;
    this.#seed = seed;
    this.rows = Math.floor((tokens.length - 1) / length);
    if (this.rows < 1) {
      throw new DataError(
        `Cannot train on the text: it has ${tokens.length} tokens, and one sequence takes ${
          length + 1
        }. Give more text or shorter sequences`,
      );
    }
  }

  /** What tells these tokens from others. */
  async digest(): Promise<string> {
    return await sha256(this.#tokens);
  }

  /** Sequence `index` of the endless row of rounds: its tokens, and the next of each. */
  at(index: number): { readonly ids: Int32Array; readonly labels: Int32Array } {
    const round = Math.floor(index / this.rows);
    if (round !== this.#round) {
      this.#order = shuffled(this.rows, randomNumbers(this.#seed, round));
      this.#round = round;
    }
    const from = this.#order[index % this.rows]! * this.#length;
    return {
      ids: this.#tokens.subarray(from, from + this.#length),
      labels: this.#tokens.subarray(from + 1, from + 1 + this.#length),
    };
  }
}

/** The numbers below `count` in random order. */
function shuffled(count: number, random: () => number): Int32Array {
  const order = Int32Array.from({ length: count }, (_, i) => i);
  for (let i = count - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1));
    [order[i], order[j]] = [order[j]!, order[i]!];
  }
  return order;
}
