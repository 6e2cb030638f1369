/** Output of `generate`: text while it is generated, lines of JSON, or one document. */

import type {
  Generated,
  GeneratedSequence,
  Logprobs,
  Tokenizer,
} from "../engine/mod.ts";
import type { GenerateFlags } from "./flags/generate.ts";
import { GeneratedTexts } from "./generated_text.ts";
import { type GenerationStats, statsText } from "./generation_stats.ts";
import type { CliIo } from "./io.ts";
import type { Watch } from "./watch.ts";

/** Options of the output. */
export interface GenerateOutputOptions {
  readonly flags: GenerateFlags;
  readonly tokenizer: Tokenizer | undefined;
  /** Number of prompts. The text of a single one is printed while it is generated. */
  readonly prompts: number;
  /** Whether this process prints: one rank does. */
  readonly prints: boolean;
  readonly watch: Pick<Watch, "send">;
}

/** Prints tokens as they are generated, and results. */
export class GenerateOutput {
  readonly #io: CliIo;
  readonly #options: GenerateOutputOptions;
  readonly #texts: GeneratedTexts;
  readonly #streams: boolean;
  readonly #started: number;
  /** Whether tokens are decoded as they are generated. */
  readonly follows: boolean;

  constructor(io: CliIo, options: GenerateOutputOptions) {
    const { flags, tokenizer, prompts } = options;
    const { json, jsonl, watch, stop = [] } = flags;
    this.#io = io;
    this.#options = options;
    this.#texts = new GeneratedTexts(tokenizer, stop);
    this.#streams = !json && !jsonl && prompts === 1;
    this.#started = io.now();
    this.follows = this.#streams || Boolean(jsonl || watch) || stop.length > 0;
  }

  /** Prints a new token, and returns "stop" where its sequence has reached a stop text. */
  async push(
    sequence: number,
    token: number,
    known: Logprobs | undefined,
  ): Promise<"stop" | undefined> {
    const { flags, tokenizer, prints, watch } = this.#options;
    const { piece, stopped } = await this.#texts.push(sequence, token);
    if (prints && this.#streams && piece !== "") await this.#io.out(piece);
    const ms = this.#io.now() - this.#started;
    watch.send("text", { sequence, piece, ms });
    if (prints && flags.jsonl) {
      const more = known ? await logprobsJson(known, tokenizer) : {};
      await this.#line({ sequence, token, text: piece, ...more });
    }
    return stopped ? "stop" : undefined;
  }

  /** Prints results that are not printed yet, and statistics on demand. */
  async end(
    result: Generated,
    { loadMs, stats }: {
      readonly loadMs: number;
      readonly stats: GenerationStats;
    },
  ): Promise<void> {
    const { flags } = this.#options;
    const { sequences } = result;
    if (this.follows) await this.#endTexts(sequences);
    if (flags.json) {
      const document = await this.#document(result, loadMs);
      const all = { ...document, ...flags.stats ? { stats } : {} };
      await this.#io.out(`${JSON.stringify(all, null, 2)}\n`);
    } else if (flags.jsonl) {
      if (flags.stats) await this.#line({ stats });
    } else if (this.#streams) await this.#io.out("\n");
    else {
      for (const [i, sequence] of sequences.entries()) {
        await this.#io.out(`[${i + 1}] ${await this.#textOf(i, sequence)}\n`);
      }
    }
    if (flags.stats && !flags.json && !flags.jsonl) {
      this.#io.err(statsText(stats));
    }
  }

  /** Prints text that was held back because it may have been the start of a stop text. */
  async #endTexts(sequences: readonly GeneratedSequence[]): Promise<void> {
    const { jsonl } = this.#options.flags;
    for (const [sequence, { ending }] of sequences.entries()) {
      const text = await this.#texts.end(sequence);
      if (this.#streams) await this.#io.out(text);
      if (jsonl) await this.#line({ sequence, text, ending });
    }
  }

  async #textOf(i: number, { tokens }: GeneratedSequence): Promise<string> {
    if (this.follows) return this.#texts.text(i);
    const { tokenizer } = this.#options;
    return tokenizer ? await tokenizer.decode(tokens) : tokens.join(",");
  }

  async #document(result: Generated, loadMs: number): Promise<object> {
    const { flags, tokenizer } = this.#options;
    const { prefillMs, decodeMs, decodeSteps } = result;
    const sequences: object[] = [];
    for (const [i, sequence] of result.sequences.entries()) {
      const logprobs: object[] = [];
      for (const known of sequence.logprobs ?? []) {
        const more = await logprobsJson(known, tokenizer);
        logprobs.push({ token: known.token, ...more });
      }
      sequences.push({
        promptTokens: sequence.prompt,
        tokens: sequence.tokens,
        text: tokenizer ? await this.#textOf(i, sequence) : null,
        ending: sequence.ending,
        ...flags.logprobs === undefined ? {} : { logprobs },
      });
    }
    return {
      sequences,
      timing: { loadMs, prefillMs, decodeMs, decodeSteps },
    };
  }

  async #line(value: object): Promise<void> {
    await this.#io.out(`${JSON.stringify(value)}\n`);
  }
}

async function logprobsJson(
  { logprob, top }: Logprobs,
  tokenizer: Tokenizer | undefined,
): Promise<object> {
  const likeliest: object[] = [];
  for (const { token, logprob } of top) {
    const text = tokenizer ? { text: await tokenizer.decode([token]) } : {};
    likeliest.push({ token, ...text, logprob });
  }
  return { logprob, top: likeliest };
}
