/** Texts and bytes of single tokens, including special tokens, for log-probabilities. */

import type { Tokenizer } from "../text/tokenizer.ts";

/** Texts of tokens, each decoded once. */
export class TokenTexts {
  readonly #tokenizer: Tokenizer;
  readonly #known = new Map<number, Promise<string>>();
  /** Bytes of parts of characters. */
  readonly #parts = new Map<number, Promise<readonly number[]>>();

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

  /** The bytes of a token, also of a part of a character. */
  async bytesOf(token: number): Promise<readonly number[]> {
    const text = await this.of(token);
    if (!text.includes("\ufffd")) return [...new TextEncoder().encode(text)];
    // The text of a part of a character is U+FFFD, which does not state its bytes.
    const known = this.#parts.get(token) ?? this.#tokenizer.bytes(token);
    this.#parts.set(token, known);
    known.catch(() => this.#parts.delete(token));
    return await known;
  }
}
