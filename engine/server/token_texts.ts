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

  /** The text of a token, or its bytes as OpenAI writes them if it has a part of a character: `bytes:\xc3`. */
  async nameOf(token: number): Promise<string> {
    const text = await this.of(token);
    if (!text.includes("\ufffd")) return text;
    const bytes = await this.bytesOf(token);
    const digits = bytes.map((byte) => byte.toString(16).padStart(2, "0"));
    return `bytes:${digits.map((two) => `\\x${two}`).join("")}`;
  }

  /** UTF-16 code units of the characters that begin in a token. */
  async lengthOf(token: number): Promise<number> {
    const text = await this.of(token);
    if (!text.includes("\ufffd")) return text.length;
    const bytes = await this.bytesOf(token);
    // Continuation bytes are 0x80 to 0xbf; characters of four bytes have two code units.
    return bytes.reduce(
      (length, byte) =>
        length + Number((byte & 0xc0) !== 0x80) + Number(byte >= 0xf0),
      0,
    );
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
