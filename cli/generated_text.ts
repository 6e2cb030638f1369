/** Incremental decoding of generated sequences, up to a stop text. */

import { StopText, TextStream, type Tokenizer } from "../engine/mod.ts";

interface Growing {
  readonly stream: TextStream | undefined;
  readonly stop: StopText;
  /** The text that was already returned. */
  text: string;
  count: number;
}

/** Decodes the tokens of sequences. Without a tokenizer, the text consists of token ids. */
export class GeneratedTexts {
  readonly #tokenizer: Tokenizer | undefined;
  readonly #stops: readonly string[];
  readonly #growing = new Map<number, Growing>();

  constructor(tokenizer: Tokenizer | undefined, stops: readonly string[]) {
    this.#tokenizer = tokenizer;
    this.#stops = stops;
  }

  /** Returns the new text of a sequence after a token, which is often empty, and whether the sequence ends. */
  async push(
    sequence: number,
    token: number,
  ): Promise<{ readonly piece: string; readonly stopped: boolean }> {
    const growing = this.#of(sequence);
    const text = growing.stream
      ? await growing.stream.push(token)
      : `${growing.count === 0 ? "" : ","}${token}`;
    growing.count++;
    const piece = growing.stop.push(text);
    growing.text += piece;
    return { piece, stopped: growing.stop.stopped };
  }

  /** Returns the text that was still held back. */
  async end(sequence: number): Promise<string> {
    const { stream, stop } = this.#of(sequence);
    const piece = stop.push(await stream?.end() ?? "") + stop.end();
    this.#of(sequence).text += piece;
    return piece;
  }

  /** Returns the complete text of a sequence. */
  text(sequence: number): string {
    return this.#of(sequence).text;
  }

  #of(sequence: number): Growing {
    const known = this.#growing.get(sequence);
    if (known) return known;
    const growing: Growing = {
      stream: this.#tokenizer && new TextStream(this.#tokenizer),
      stop: new StopText(this.#stops),
      text: "",
      count: 0,
    };
    this.#growing.set(sequence, growing);
    return growing;
  }
}
