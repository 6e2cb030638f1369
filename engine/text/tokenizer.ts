/** Converts text to token ids and back, by the checkpoint's tokenizer.json. */

/** Tokenizer interface of the engine. */
export interface Tokenizer {
  /** Ids of a text with the special tokens added by the tokenizer. */
  encode(text: string): Promise<number[]>;
  /** Ids of a text only; the text contains its special tokens. */
  encodeBare(text: string): Promise<number[]>;
  /** The text of tokens without special tokens, except those that are part of a text of `shown`. */
  decode(
    tokens: readonly number[],
    shown?: readonly string[],
  ): Promise<string>;
  /** The text of tokens including special tokens. */
  decodeAll(tokens: readonly number[]): Promise<string>;
  /** The bytes of a token, which may be a part of a character. */
  bytes(token: number): Promise<readonly number[]>;
  /** The texts that tokens complete, decoded as by `decode`. */
  complete(
    held: HeldText,
    added: readonly number[],
    shown?: readonly string[],
  ): Promise<CompletedText>;
  /** Terminates its process. */
  close(): void;
}

/** State of a streamed text. */
export interface HeldText {
  /** Tokens of the last returned piece and later ones. */
  readonly tokens: readonly number[];
  /** Tokens of that piece. */
  readonly given: number;
}

/** Pieces of text, one per token, and the state after them. */
export interface CompletedText {
  readonly pieces: readonly string[];
  readonly held: HeldText;
}

/**
 * The texts that tokens complete. A token can end within a character, so a piece is returned only once it can no longer
 * change. Each piece is decoded together with the previous one, because some tokenizers drop a leading space.
 */
export function completeText(
  decode: (tokens: number[]) => string,
  { tokens, given }: HeldText,
  added: readonly number[],
): CompletedText {
  let held = [...tokens];
  let count = given;
  const pieces = added.map((token) => {
    held.push(token);
    const text = decode(held);
    if (text.endsWith("\ufffd")) return "";
    const piece = text.slice(decode(held.slice(0, count)).length);
    held = held.slice(count);
    count = held.length;
    return piece;
  });
  return { pieces, held: { tokens: held, given: count } };
}

/** Streams the text of tokens, without partial characters. */
export class TextStream {
  readonly #tokenizer: Tokenizer;
  readonly #shown: readonly string[];
  #held: HeldText = { tokens: [], given: 0 };

  /** `shown`: as for `Tokenizer.decode`. */
  constructor(tokenizer: Tokenizer, shown: readonly string[] = []) {
    this.#tokenizer = tokenizer;
    this.#shown = shown;
  }

  /** The text that `token` completes, often empty. */
  async push(token: number): Promise<string> {
    return (await this.pushAll([token]))[0]!;
  }

  /** The texts that tokens complete, one for each. */
  async pushAll(tokens: readonly number[]): Promise<readonly string[]> {
    if (tokens.length === 0) return [];
    const completed = await this.#tokenizer.complete(
      this.#held,
      tokens,
      this.#shown,
    );
    this.#held = completed.held;
    return completed.pieces;
  }

  /** The held-back text. */
  async end(): Promise<string> {
    const { tokens, given } = this.#held;
    if (given === tokens.length) return "";
    const decode = (ids: readonly number[]) =>
      this.#tokenizer.decode(ids, this.#shown);
    const text = await decode(tokens);
    const before = await decode(tokens.slice(0, given));
    return text.slice(before.length);
  }
}
