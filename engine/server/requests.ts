/** Request bodies as typed requests, and their sampling fields as options of a sequence. */

import type { ErrorObject } from "ajv";
import { deepestError } from "../../spec/document/schema_error.ts";
import type { SequenceOptions } from "../generation/sequence.ts";
import { RequestError } from "./errors.ts";
import type {
  ChatRequest,
  CompletionRequest,
  ResponseRequest,
  SamplingRequest,
} from "./request_types.ts";
import {
  chatErrors,
  completionErrors,
  responseErrors,
} from "./request_validator.ts";

type Body = { readonly [field: string]: unknown };

/** Checks a body of `/v1/completions`. Throws RequestError. */
export function completionRequest(body: Body): CompletionRequest {
  return checked(body, completionErrors) as unknown as CompletionRequest;
}

/** Checks a body of `/v1/chat/completions`. Throws RequestError. */
export function chatRequest(body: Body): ChatRequest {
  return checked(body, chatErrors) as unknown as ChatRequest;
}

/** Checks a body of `/v1/responses`. Throws RequestError. */
export function responseRequest(body: Body): ResponseRequest {
  return checked(body, responseErrors) as unknown as ResponseRequest;
}

function checked(
  body: Body,
  errorsOf: (body: Body) => readonly ErrorObject[],
): Body {
  const request = present(body);
  refuse(errorsOf(request));
  refuseUnsupported(request);
  return request;
}

/**
 * Fields of OpenAI, vLLM and llama.cpp that would change a response and are not supported, and whether a value changes
 * nothing.
 */
const UNSUPPORTED: {
  readonly [field: string]: (value: unknown, request: Body) => boolean;
} = {
  add_generation_prompt: (value) => value === true,
  allowed_token_ids: isEmpty,
  audio: never,
  background: isOff,
  bad_words: isEmpty,
  best_of: (value, { n = 1 }) => value === n,
  chat_template: never,
  continue_final_message: isOff,
  conversation: never,
  documents: isEmpty,
  dry_multiplier: isOff,
  dynatemp_range: isOff,
  functions: isEmpty,
  guided_choice: never,
  guided_grammar: never,
  guided_json: never,
  guided_regex: never,
  include_stop_str_in_output: isOff,
  logits_processors: isEmpty,
  min_tokens: isOff,
  mirostat: isOff,
  n_predict: never,
  previous_response_id: never,
  prompt_embeds: never,
  prompt_logprobs: never,
  repeat_penalty: (value) => value === 1,
  return_token_ids: isOff,
  return_tokens_as_token_ids: isOff,
  skip_special_tokens: (value) => value === true,
  stop_token_ids: isEmpty,
  structured_outputs: never,
  suffix: (value) => value === "",
  truncate_prompt_tokens: never,
  top_n_sigma: (value) => typeof value === "number" && value <= 0,
  typ_p: (value) => value === 1,
  typical_p: (value) => value === 1,
  use_beam_search: isOff,
  web_search_options: never,
  xtc_probability: isOff,
};

/** Supported fields with the same effect. */
const INSTEAD: { readonly [field: string]: string } = {
  guided_choice: "grammar",
  guided_grammar: "grammar",
  guided_json: "json_schema",
  guided_regex: "grammar",
  n_predict: "max_tokens",
  repeat_penalty: "repetition_penalty",
  structured_outputs: "response_format",
};

function isEmpty(value: unknown): boolean {
  return Array.isArray(value) && value.length === 0;
}

function isOff(value: unknown): boolean {
  return value === false || value === 0;
}

function never(): boolean {
  return false;
}

function refuseUnsupported(request: Body): void {
  for (const [field, changesNothing] of Object.entries(UNSUPPORTED)) {
    const value = request[field];
    if (value === undefined || changesNothing(value, request)) continue;
    throw new RequestError(
      `Cannot use '${field}': it is not supported. ${
        INSTEAD[field] === undefined
          ? "Leave it out"
          : `Use '${INSTEAD[field]}'`
      }`,
      { param: field, code: "unsupported_parameter" },
    );
  }
}

/** Fields with a JSON Schema or arguments of a template, where null is a value. */
const KEPT = new Set([
  "chat_template_kwargs",
  "json_schema",
  "parameters",
  "schema",
]);

/** Removes null fields, which count as omitted, at any depth. */
function present(body: Body): Body {
  return Object.fromEntries(
    Object.entries(body).filter(([, value]) => value !== null)
      .map(([name, value]) => [name, KEPT.has(name) ? value : within(value)]),
  );
}

function within(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(within);
  return typeof value === "object" && value !== null
    ? present(value as Body)
    : value;
}

function refuse(errors: readonly ErrorObject[]): void {
  const [last, deepest] = [errors.at(-1), deepestError(errors)];
  if (!last || !deepest) return;
  const missing = last.keyword === "required"
    ? `/${last.params["missingProperty"]}`
    : "";
  const nameOf = (path: string) => path.slice(1).replaceAll("/", ".");
  // For several forms of a field, the last error is that of the field.
  const param = nameOf(`${last.instancePath}${missing}`);
  throw new RequestError(
    missing === ""
      ? `Cannot use '${
        nameOf(deepest.path)
      }': it ${deepest.state}. Correct the request`
      : `Cannot use '${param}': it is missing. Correct the request`,
    { param },
  );
}

/** Server defaults for omitted fields. */
export interface SamplingDefaults {
  /** Stop tokens. */
  readonly stop: ReadonlySet<number>;
  readonly vocabulary: number;
}

/** Sampling options of the choices of a request, without their random streams. */
export function samplingOf(
  request: SamplingRequest,
  { stop, vocabulary }: SamplingDefaults,
): Omit<SequenceOptions, "maxNewTokens"> & { readonly seed: number } {
  const { top_k = 0 } = request;
  const bias = Object.entries(request.logit_bias ?? {})
    .map(([token, bias]) => [Number(token), bias] as const);
  const unknown = bias.find(([token]) => token >= vocabulary);
  if (unknown) {
    throw new RequestError(
      `Cannot use 'logit_bias': the vocabulary has no token ${
        unknown[0]
      }. Use ids below ${vocabulary}`,
      { param: "logit_bias" },
    );
  }
  const seed = request.seed ?? crypto.getRandomValues(new Uint32Array(1))[0]!;
  return {
    // As in `randomNumbers`.
    seed: seed >>> 0,
    experts: request.routed_experts ?? false,
    stop: request.ignore_eos ? new Set() : stop,
    temperature: request.temperature ?? 1,
    ...top_k > 0 ? { topK: top_k } : {},
    topP: request.top_p ?? 1,
    minP: request.min_p ?? 0,
    repeatPenalty: request.repetition_penalty ?? 1,
    presencePenalty: request.presence_penalty ?? 0,
    frequencyPenalty: request.frequency_penalty ?? 0,
    bias: new Map(bias),
    receipt: request.receipt ?? false,
  };
}

/** Texts that end a choice. */
export function stopTextsOf({ stop = [] }: SamplingRequest): readonly string[] {
  return typeof stop === "string" ? [stop] : stop;
}
