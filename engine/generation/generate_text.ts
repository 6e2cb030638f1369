/** Generates text from a text: continues a prompt with a decoder. */

import type { Decoder } from "./decoder.ts";
import { generate } from "./generate.ts";
import type { SamplingOptions } from "./sampling.ts";
import { TextStream, type Tokenizer } from "../text/tokenizer.ts";

/** Options of generation. */
export interface GenerateTextOptions extends Partial<SamplingOptions> {
  /** Maximum number of new tokens. Default: 64. */
  readonly maxNewTokens?: number;
  /** Called with each piece of text. */
  readonly onText?: (piece: string) => void | Promise<void>;
}

/** A decoder with the tokenizer of its checkpoint and the stop tokens. */
export interface TextModel {
  readonly decoder: Decoder;
  readonly tokenizer: Tokenizer;
  readonly stop: ReadonlySet<number>;
}

/** Continues a text. Default: greedy. `afterToken` is awaited after each token. */
export async function generateText(
  { decoder, tokenizer, stop }: TextModel,
  prompt: string,
  { maxNewTokens = 64, onText, afterToken, ...sampling }:
    & GenerateTextOptions
    & {
      readonly afterToken?: () => Promise<void>;
    } = {},
): Promise<string> {
  const stream = new TextStream(tokenizer);
  let text = "";
  const push = async (piece: string) => {
    text += piece;
    if (piece !== "") await onText?.(piece);
  };
  await generate(decoder, [await tokenizer.encode(prompt)], {
    temperature: 0,
    ...sampling,
    maxNewTokens,
    stop,
    onToken: async (_, token) => {
      await push(await stream.push(token));
      await afterToken?.();
    },
  });
  await push(await stream.end());
  return text;
}
