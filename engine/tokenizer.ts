/** Text to token ids and back, by the checkpoint's own tokenizer.json. */

/** What the engine needs of a tokenizer. */
export interface Tokenizer {
  /** Ids of a text, with the special tokens that the tokenizer puts around it. */
  encode(text: string): Promise<number[]>;
  /** Ids of a text and nothing else, where the text spells out its special tokens. */
  encodeBare(text: string): Promise<number[]>;
  /** The text of tokens; special tokens such as an end of text have none. */
  decode(tokens: readonly number[]): Promise<string>;
  /** The text of tokens, special tokens spelled out. */
  decodeAll(tokens: readonly number[]): Promise<string>;
  /** End its process. */
  close(): void;
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
  async push(token: number): Promise<string> {
    this.#tokens.push(token);
    const text = await this.#decode(this.#tokens.length);
    if (text.endsWith("\ufffd")) return "";
    const piece = text.slice((await this.#decode(this.#given)).length);
    this.#before = this.#given;
    this.#given = this.#tokens.length;
    return piece;
  }

  /** The texts that tokens complete, one for each. */
  async pushAll(tokens: readonly number[]): Promise<string[]> {
    const pieces: string[] = [];
    for (const token of tokens) pieces.push(await this.push(token));
    return pieces;
  }

  /** What was still held back. */
  async end(): Promise<string> {
    const text = await this.#decode(this.#tokens.length);
    return text.slice((await this.#decode(this.#given)).length);
  }

  #decode(end: number): Promise<string> {
    return this.#tokenizer.decode(this.#tokens.slice(this.#before, end));
  }
}
