/** Texts of single tokens, including special tokens, for log-probabilities. */

import type { Tokenizer } from "../text/tokenizer.ts";

/** Texts of tokens, each decoded once. */
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
