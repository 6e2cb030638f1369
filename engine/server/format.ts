/** Formats the choices of a request for an API. */

import type { Chosen, FinishReason } from "./answer.ts";
import type { RoutedExperts } from "../generation/sampling.ts";
import type { Choice } from "./generation.ts";

/** A token of a choice, and the text that it completes. Undefined text for a token of the prompt. */
export interface CollectedToken extends Chosen {
  readonly text: string | undefined;
}

/** The state of a choice. */
export interface Collected {
  text: string;
  readonly pieces: CollectedToken[];
  reason: FinishReason | undefined;
}

/** A prepared request. */
interface PreparedChoices {
  readonly choices: readonly Choice[];
  /** Tokens of all prompts; a prompt with several choices counts once. */
  readonly promptTokens: number;
  readonly stream: boolean;
}

/** A prepared request, and the format of its responses. */
export type Prepared = PreparedCompletion | PreparedResource;

/** A request with one choice, whose response is a resource. */
export interface PreparedResource extends PreparedChoices {
  readonly kind: "resource";
  readonly resource: Resource;
}

/** A response that is a resource, which events change. */
export interface Resource {
  /** The first events. */
  begin(): readonly ResourceEvent[];
  /** Adds a part of the choice. */
  add(added: Collected): Promise<readonly ResourceEvent[]>;
  /** The resource. */
  result(): object;
}

/** A change of a resource. */
export interface ResourceEvent {
  readonly type: string;
  readonly [field: string]: unknown;
}

/** A request whose response is a list of choices. */
export interface PreparedCompletion extends PreparedChoices {
  readonly kind: "completion";
  readonly includeUsage: boolean;
  /** Prefix of ids. */
  readonly prefix: string;
  /** `object` of a response, and of a chunk. */
  readonly objects: readonly [response: string, chunk: string];
  /** State of a choice before any new token. */
  begin(choice: number): Promise<Collected>;
  /** A choice of a response. */
  complete(choice: number, collected: Collected): Promise<object>;
  /** A choice of the first chunk. Undefined if it is empty. */
  first(choice: number, begun: Collected): Promise<object | undefined>;
  /** A choice of a chunk. Undefined if it is empty. */
  delta(choice: number, added: Collected): Promise<object | undefined>;
}

/** Tokens of a response, besides its prompts. */
export interface CountedTokens {
  completion: number;
  /** Prompt tokens that were cached. */
  cached: number;
}

/** Counts the tokens of a part of a choice. */
export function countTokens(
  counted: CountedTokens,
  { pieces }: Collected,
  { options }: Choice,
): void {
  // A prompt with several choices counts once.
  const isFirst = options.stream === 0;
  for (const { text, cached = 0 } of pieces) {
    if (text !== undefined) counted.completion++;
    if (isFirst) counted.cached += cached;
  }
}

/** Tokens of a request and its response, as OpenAI's API reports them. */
export function usageOf(
  promptTokens: number,
  { completion, cached }: CountedTokens,
): {
  readonly prompt_tokens: number;
  readonly completion_tokens: number;
  readonly total_tokens: number;
  readonly prompt_tokens_details: { readonly cached_tokens: number };
} {
  return {
    prompt_tokens: promptTokens,
    completion_tokens: completion,
    total_tokens: promptTokens + completion,
    prompt_tokens_details: { cached_tokens: cached },
  };
}

/** The experts of tokens, if a request asks for them. Null for a token of the prompt. */
export function expertsField(
  pieces: readonly CollectedToken[],
  { routed_experts = false }: { readonly routed_experts?: boolean },
): { readonly routed_experts?: readonly (RoutedExperts | null)[] } {
  return routed_experts
    ? { routed_experts: pieces.map(({ experts }) => experts ?? null) }
    : {};
}
