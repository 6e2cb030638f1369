/** The text of one choice of a response, as its tokens arrive. */

import type { Ending, TokenRecord } from "../generation/sequence.ts";
import type { Logprobs } from "../generation/sampling.ts";
import { StopText } from "../generation/stop_text.ts";
import { TextStream, type Tokenizer } from "../text/tokenizer.ts";

/** Finish reason of a choice in the API. */
export type FinishReason = "stop" | "length" | "tool_calls";

/** A chosen token. */
export interface Chosen extends TokenRecord {
  readonly token: number;
  readonly logprobs: Logprobs | undefined;
}

/** A token of a choice, and the text that it completes. */
export interface Piece extends Chosen {
  readonly text: string;
}

/** Converts tokens to text, up to a stop token or a stop text. */
export class Answer {
  readonly #stream: TextStream;
  readonly #stopTexts: StopText;
  readonly #stop: ReadonlySet<number>;

  constructor(
    tokenizer: Tokenizer,
    { stop, stopTexts, shown = [] }: {
      readonly stop: ReadonlySet<number>;
      readonly stopTexts: readonly string[];
      /** Texts whose special tokens are part of the answer. Default: none. */
      readonly shown?: readonly string[] | undefined;
    },
  ) {
    this.#stream = new TextStream(tokenizer, shown);
    this.#stopTexts = new StopText(stopTexts);
    this.#stop = stop;
  }

  /** Whether a stop text was found: later tokens are not part of the answer. */
  get stopped(): boolean {
    return this.#stopTexts.stopped;
  }

  /** The pieces of some tokens; fewer if a stop text ends them. A stop token is the last one, and has no text. */
  async push(chosen: readonly Chosen[]): Promise<readonly Piece[]> {
    const pieces: Piece[] = [];
    const spoken = chosen.filter(({ token }) => !this.#stop.has(token));
    const texts = await this.#stream.pushAll(spoken.map(({ token }) => token));
    for (const [i, one] of chosen.entries()) {
      if (this.stopped) break;
      const text = i < spoken.length ? this.#stopTexts.push(texts[i]!) : "";
      pieces.push({ ...one, text });
    }
    return pieces;
  }

  /** Remaining held-back text, and the finish reason. */
  async end(
    ending: Ending,
  ): Promise<{ readonly text: string; readonly reason: FinishReason }> {
    const rest = this.#stopTexts.push(await this.#stream.end());
    const text = rest + this.#stopTexts.end();
    const reason = this.#stopTexts.stopped || ending === "stop token"
      ? "stop"
      : "length";
    return { text, reason };
  }
}
