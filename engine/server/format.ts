/** What an API makes of the choices of a request. */

import type { Chosen, FinishReason } from "./answer.ts";
import type { Choice } from "./generation.ts";

/** A token of a choice, and the text that it completes; undefined for a token of the prompt. */
export interface CollectedToken extends Chosen {
  readonly text: string | undefined;
}

/** A choice, as far as it has become. */
export interface Collected {
  text: string;
  readonly pieces: CollectedToken[];
  reason: FinishReason | undefined;
}

/** A request that can be answered, and how its responses are written. */
export interface Prepared {
  readonly choices: readonly Choice[];
  /** Tokens of all prompts; those of choices of the same prompt are counted once. */
  readonly promptTokens: number;
  readonly stream: boolean;
  readonly includeUsage: boolean;
  /** Starts of ids. */
  readonly prefix: string;
  /** `object` of a response, and of a chunk. */
  readonly objects: readonly [response: string, chunk: string];
  /** What a choice has before any new token. */
  begin(choice: number): Promise<Collected>;
  /** A choice of a response. */
  whole(choice: number, collected: Collected): Promise<object>;
  /** A choice of the first chunk; undefined if there is nothing to say. */
  first(choice: number, begun: Collected): Promise<object | undefined>;
  /** A choice of a chunk; undefined if there is nothing to say. */
  delta(choice: number, added: Collected): Promise<object | undefined>;
}

/** Tokens of a request and its response. */
export function usageOf(promptTokens: number, completionTokens: number): {
  readonly prompt_tokens: number;
  readonly completion_tokens: number;
  readonly total_tokens: number;
} {
  return {
    prompt_tokens: promptTokens,
    completion_tokens: completionTokens,
    total_tokens: promptTokens + completionTokens,
  };
}
