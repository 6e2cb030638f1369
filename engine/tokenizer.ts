/** Converts text to token ids and back, by the checkpoint's tokenizer.json. */

/** Tokenizer interface of the engine. */
export interface Tokenizer {
  /** Ids of a text with the special tokens added by the tokenizer. */
  encode(text: string): Promise<number[]>;
  /** Ids of a text only; the text contains its special tokens. */
  encodeBare(text: string): Promise<number[]>;
  /** The text of tokens without special tokens. */
  decode(tokens: readonly number[]): Promise<string>;
  /** The text of tokens including special tokens. */
  decodeAll(tokens: readonly number[]): Promise<string>;
  /** Terminates its process. */
  close(): void;
}

/**
 * Streams the text of tokens. A token can end within a character, so a piece is returned only once it can no longer
 * change. Each piece is decoded together with the previous one, because some tokenizers drop a leading space.
 */
export class TextStream {
  #tokenizer: Tokenizer;
  #tokens: number[] = [];
  #before = 0;
  #given = 0;
  constructor(tokenizer: Tokenizer) {
    this.#tokenizer = tokenizer;
  }

  /** The text that `token` completes, often empty, never a partial character. */
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

  /** The held-back text. */
  async end(): Promise<string> {
    const text = await this.#decode(this.#tokens.length);
    return text.slice((await this.#decode(this.#given)).length);
  }

  #decode(end: number): Promise<string> {
    return this.#tokenizer.decode(this.#tokens.slice(this.#before, end));
  }
}
