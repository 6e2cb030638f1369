/** Texts of single tokens, special tokens spelled out, as log-probabilities name them. */

import type { Tokenizer } from "../tokenizer.ts";

/** Returns texts of tokens, each of which is decoded once. */
export class TokenTexts {
  readonly #tokenizer: Tokenizer;
  readonly #known = new Map<number, Promise<string>>();

  constructor(tokenizer: Tokenizer) {
    this.#tokenizer = tokenizer;
  }

  /** The text of a token. */
  async of(token: number): Promise<string> {
    const known = this.#known.get(token) ?? this.#tokenizer.decodeAll([token]);
    this.#known.set(token, known);
    known.catch(() => this.#known.delete(token));
    return await known;
  }
}
