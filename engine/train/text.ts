/** Text as training data: a row of tokens, divided into sequences, shuffled in each epoch. */

import { quantity } from "../../spec/quantity.ts";
import { DataError } from "../../spec/errors.ts";
import { randomNumbers } from "../generation/sampling.ts";
import type { Tokenizer } from "../text/tokenizer.ts";

/** Reads a text in chunks, from its start in each call. */
export type Text = () => AsyncIterable<string> | Iterable<string>;

/** Minimum and maximum characters of a piece: it ends before a paragraph, else after a line or a word. */
const PIECE = 1 << 14, LONGEST_PIECE = 1 << 20;

/** A text in pieces for the tokenizer. They do not depend on the chunks. */
export async function* piecesOf(text: Text): AsyncGenerator<string> {
  let rest = "";
  for await (const chunk of text()) {
    rest += chunk;
    for (let end = endOf(rest); end > 0; end = endOf(rest)) {
      yield rest.slice(0, end);
      rest = rest.slice(end);
    }
  }
  if (rest !== "") yield rest;
}

/** The end of the first piece of a text, whatever follows; 0 if unknown. */
function endOf(text: string): number {
  const end = text.indexOf("\n\n", PIECE);
  if (end >= 0 && end <= LONGEST_PIECE) return end;
  if (text.length < LONGEST_PIECE + 2) return 0;
  for (const space of ["\n", " "]) {
    const end = text.lastIndexOf(space, LONGEST_PIECE - 1) + 1;
    if (end > PIECE) return end;
  }
  // Not between surrogate halves.
  return /[\ud800-\udbff]/.test(text[LONGEST_PIECE - 1]!)
    ? LONGEST_PIECE - 1
    : LONGEST_PIECE;
}

/** Tokens of texts in parts of some thousand, with `between` after each text. */
export async function* tokenize(
  tokenizer: Tokenizer,
  texts: readonly Text[],
  between: number | undefined,
): AsyncGenerator<Int32Array> {
  for (const text of texts) {
    for await (const piece of piecesOf(text)) {
      yield Int32Array.from(await tokenizer.encodeBare(piece));
    }
    if (between !== undefined) yield Int32Array.of(between);
  }
}

/** A sequence of tokens, in memory or in a file. */
export interface TokenRow {
  readonly count: number;
  /** The tokens from one index to another. */
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

/** A sequence, and the next token of each of its tokens. */
export interface Sequence {
  readonly ids: Int32Array;
  readonly labels: Int32Array;
}

/** Sequences of equal length. */
export class TextRows {
  /** Sequences per epoch; the remainder is not used. */
  readonly rows: number;
  /** Tokens per sequence. */
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
        `Cannot train on the text: it has ${
          quantity(tokens.count, "token")
        }, and one sequence takes ${
          length + 1
        }. Give more text or shorter sequences`,
      );
    }
  }

  /** Sequence `index` over all epochs. */
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

  /** Closes the source of tokens. */
  async close(): Promise<void> {
    await this.#tokens.close();
  }
}

/** The numbers below `count` in random order. */
export function shuffled(count: number, random: () => number): Int32Array {
  const order = Int32Array.from({ length: count }, (_, i) => i);
  for (let i = count - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1));
    [order[i], order[j]] = [order[j]!, order[i]!];
  }
  return order;
}
