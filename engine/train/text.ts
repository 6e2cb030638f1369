/** Text as training data: one long row of tokens, cut into sequences, shuffled anew in each round. */

import { DataError } from "../../spec/errors.ts";
import { randomNumbers } from "../sampling.ts";
import type { Tokenizer } from "../tokenizer.ts";

/** Characters that are tokenised at a time, at least; pieces end before a paragraph. */
const PIECE = 1 << 14;

/** The tokens of some texts, one after another, with `between` behind each. */
export async function tokenize(
  tokenizer: Tokenizer,
  texts: readonly string[],
  between: number | undefined,
): Promise<Int32Array> {
  const parts: number[][] = [];
  for (const text of texts) {
    for (let from = 0; from < text.length;) {
      const end = text.indexOf("\n\n", from + PIECE);
      const to = end < 0 ? text.length : end;
      parts.push(await tokenizer.encodeBare(text.slice(from, to)));
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

/** Tokens one after another, in memory or in a file. */
export interface TokenRow {
  readonly count: number;
  /** The tokens from one index up to another. */
  read(from: number, to: number): Promise<Int32Array>;
  close(): Promise<void>;
}

/** Tokens in memory. */
export function tokensInMemory(tokens: Int32Array): TokenRow {
  return {
    count: tokens.length,
    read: (from, to) => Promise.resolve(tokens.subarray(from, to)),
    close: () => Promise.resolve(),
  };
}

/** A sequence, and the token behind each of its tokens. */
export interface Sequence {
  readonly ids: Int32Array;
  readonly labels: Int32Array;
}

/** Sequences of one length. */
export class TextRows {
  /** Sequences of a round; what is left over at the end is not used. */
  readonly rows: number;
  /** Tokens of a sequence. */
  readonly length: number;
  readonly #tokens: TokenRow;
  readonly #seed: number;
  #round = -1;
  #order: Int32Array = new Int32Array(0);

  constructor(
    tokens: TokenRow,
    { length, seed }: { readonly length: number; readonly seed: number },
  ) {
    this.#tokens = tokens;
    this.length = length;
    this.#seed = seed;
    this.rows = Math.floor((tokens.count - 1) / length);
    if (this.rows < 1) {
      throw new DataError(
        `Cannot train on the text: it has ${tokens.count} tokens, and one sequence takes ${
          length + 1
        }. Give more text or shorter sequences`,
      );
    }
  }

  /** Sequence `index` of the endless row of rounds. */
  async at(index: number): Promise<Sequence> {
    const round = Math.floor(index / this.rows);
    if (round !== this.#round) {
      this.#order = shuffled(this.rows, randomNumbers(this.#seed, round));
      this.#round = round;
    }
    const { length } = this;
    const from = this.#order[index % this.rows]! * length;
    const tokens = await this.#tokens.read(from, from + length + 1);
    return { ids: tokens.subarray(0, length), labels: tokens.subarray(1) };
  }

  /** Give back what the tokens are read from. */
  async close(): Promise<void> {
    await this.#tokens.close();
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
