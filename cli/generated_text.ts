/** The text of sequences as they grow, up to a text that ends them. */

import { StopText, TextStream, type Tokenizer } from "../engine/mod.ts";

interface Growing {
  readonly stream: TextStream | undefined;
  readonly stop: StopText;
  /** What has been given on. */
  text: string;
  count: number;
}

/** Decodes tokens of sequences; where there is no tokenizer, texts are token ids. */
export class GeneratedTexts {
  readonly #tokenizer: Tokenizer | undefined;
  readonly #stops: readonly string[];
  readonly #growing = new Map<number, Growing>();

  constructor(tokenizer: Tokenizer | undefined, stops: readonly string[]) {
    this.#tokenizer = tokenizer;
    this.#stops = stops;
  }

  /** What a token adds to the text of its sequence, often nothing, and whether that ends here. */
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

  /** What was still held back. */
  async end(sequence: number): Promise<string> {
    const { stream, stop } = this.#of(sequence);
    const piece = stop.push(await stream?.end() ?? "") + stop.end();
    this.#of(sequence).text += piece;
    return piece;
  }

  /** The whole text of a sequence. */
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
