/** Text to token ids and back, by the checkpoint's own tokenizer.json. */

import { Tokenizer as HubTokenizer } from "@huggingface/tokenizers";
import { DataError } from "../spec/errors.ts";

/** What the engine needs of a tokenizer. */
export interface Tokenizer {
  /** Ids of a text, with the special tokens that the tokenizer puts around it. */
  encode(text: string): number[];
  /** Ids of a text and nothing else, where the text spells out its special tokens. */
  encodeBare(text: string): number[];
  /** The text of tokens; special tokens such as an end of text have none. */
  decode(tokens: readonly number[]): string;
  /** The text of tokens, special tokens spelled out. */
  decodeAll(tokens: readonly number[]): string;
}

/**
 * Make a tokenizer from the parsed `tokenizer.json` and `tokenizer_config.json`.
 *
 * @param folder where they came from, for messages
 */
export function createTokenizer(
  files: { readonly tokenizer: object; readonly config: object },
  folder: string,
): Tokenizer {
  let hub: HubTokenizer;
  try {
    hub = new HubTokenizer(files.tokenizer, files.config);
  } catch (error) {
    throw new DataError(
      `Cannot read the tokenizer of '${folder}': ${
        error instanceof Error ? error.message : String(error)
      }. Check tokenizer.json`,
    );
  }
  const decode = (tokens: readonly number[], skip: boolean): string =>
    tokens.length === 0
      ? ""
      : hub.decode([...tokens], { skip_special_tokens: skip });
  return {
    encode: (text) => hub.encode(text).ids,
    encodeBare: (text) => hub.encode(text, { add_special_tokens: false }).ids,
    decode: (tokens) => decode(tokens, true),
    decodeAll: (tokens) => decode(tokens, false),
  };
}

/**
 * Text that grows with its tokens. A token can end in the middle of a character, so a piece is only
 * given out once it can no longer change. Each piece is decoded behind the one before it, since some
 * tokenizers drop a leading space.
 */
export class TextStream {
  #tokenizer: Tokenizer;
  #tokens: number[] = [];
  #before = 0;
  #given = 0;
  constructor(tokenizer: Tokenizer) {
    this.#tokenizer = tokenizer;
  }

  /** The text that `token` completes, often empty, never a broken character. */
  push(token: number): string {
    this.#tokens.push(token);
    const text = this.#decode(this.#tokens.length);
    if (text.endsWith("\ufffd")) return "";
    const piece = text.slice(this.#decode(this.#given).length);
    this.#before = this.#given;
    this.#given = this.#tokens.length;
    return piece;
  }

  /** What was still held back. */
  end(): string {
    return this.#decode(this.#tokens.length).slice(
      this.#decode(this.#given).length,
    );
  }

  #decode(end: number): string {
    return this.#tokenizer.decode(this.#tokens.slice(this.#before, end));
  }
}
