/** Request bodies as typed requests, and their sampling fields as options of a sequence. */

import type { ErrorObject } from "ajv";
import type { SequenceOptions } from "../batch.ts";
import { RequestError } from "./errors.ts";
import {
  chatErrors,
  completionErrors,
  responseErrors,
} from "./request_validator.ts";

/** Fields of all requests. */
export interface SamplingRequest {
  readonly model?: string;
  readonly frequency_penalty?: number;
  /** A grammar in EBNF. */
  readonly grammar?: string;
  /** Whether stop tokens are ignored. */
  readonly ignore_eos?: boolean;
  /** A JSON Schema, as in `response_format`. */
  readonly json_schema?: object;
  readonly logit_bias?: { readonly [token: string]: number };
  readonly min_p?: number;
  readonly n?: number;
  readonly presence_penalty?: number;
  /** Whether the response has a receipt. */
  readonly receipt?: boolean;
  readonly repetition_penalty?: number;
  readonly response_format?: {
    readonly type: "text" | "json_object" | "json_schema";
    readonly schema?: object;
    readonly json_schema?: { readonly schema: object };
  };
  /** Whether a choice has the experts of its tokens. */
  readonly routed_experts?: boolean;
  readonly seed?: number;
  readonly stop?: string | readonly string[];
  readonly stream?: boolean;
  readonly stream_options?: { readonly include_usage?: boolean };
  readonly temperature?: number;
  readonly top_k?: number;
  readonly top_p?: number;
}

/** A body of `/v1/completions`. */
export interface CompletionRequest extends SamplingRequest {
  readonly prompt:
    | string
    | readonly string[]
    | readonly number[]
    | readonly (readonly number[])[];
  readonly best_of?: number;
  readonly echo?: boolean;
  readonly logprobs?: number;
  readonly max_tokens?: number;
}

/** A part of a message. */
export interface TextPart {
  readonly text: string;
}

/** A message of a conversation. */
export interface MessageRequest {
  readonly role: string;
  readonly content?: string | null | readonly TextPart[];
  readonly tool_calls?: readonly {
    readonly function: { readonly name: string; readonly arguments: string };
  }[];
  readonly [field: string]: unknown;
}

/** A function that a model may call. */
export interface ToolRequest {
  readonly type: "function";
  readonly function: {
    readonly name: string;
    readonly description?: string | null;
    /** JSON Schema of its arguments. */
    readonly parameters?: { readonly [keyword: string]: unknown } | null;
  };
}

/** A body of `/v1/chat/completions`. */
export interface ChatRequest extends SamplingRequest {
  readonly chat_template_kwargs?: { readonly [name: string]: unknown };
  readonly logprobs?: boolean;
  readonly max_completion_tokens?: number;
  readonly max_tokens?: number;
  readonly messages: readonly MessageRequest[];
  /** Whether a message may have several calls. Default: true. */
  readonly parallel_tool_calls?: boolean;
  readonly reasoning_effort?: string;
  readonly tool_choice?: "none" | "auto" | "required" | {
    readonly function: { readonly name: string };
  };
  readonly tools?: readonly ToolRequest[];
  readonly top_logprobs?: number;
}

/** An item of a conversation. */
export type InputItem =
  | {
    readonly type?: "message";
    readonly role: string;
    readonly content: string | readonly TextPart[];
  }
  | {
    readonly type: "function_call";
    readonly call_id: string;
    readonly name: string;
    readonly arguments: string;
  }
  | {
    readonly type: "function_call_output";
    readonly call_id: string;
    readonly output: string | readonly TextPart[];
  }
  | {
    readonly type: "reasoning";
    readonly content?: readonly TextPart[] | null;
  };

/** A body of `/v1/responses`. */
export interface ResponseRequest extends SamplingRequest {
  readonly input: string | readonly InputItem[];
  readonly instructions?: string;
  readonly max_output_tokens?: number;
  readonly metadata?: { readonly [key: string]: string };
  readonly parallel_tool_calls?: boolean;
  readonly reasoning?: { readonly effort?: string };
  readonly text?: {
    readonly format?: {
      readonly type: "text" | "json_object" | "json_schema";
      readonly schema?: object;
    };
  };
  readonly tool_choice?: "none" | "auto" | "required" | {
    readonly name: string;
  };
  readonly tools?: readonly ({
    readonly type: "function";
    readonly strict?: boolean;
  } & ToolRequest["function"])[];
}

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

/** Fields that would change a response and are not supported, and whether a value changes nothing. */
const UNSUPPORTED: {
  readonly [field: string]: (value: unknown, request: Body) => boolean;
} = {
  background: (value) => value === false,
  best_of: (value, { n = 1 }) => value === n,
  conversation: () => false,
  functions: isEmpty,
  previous_response_id: () => false,
  suffix: (value) => value === "",
};

function isEmpty(value: unknown): boolean {
  return Array.isArray(value) && value.length === 0;
}

function refuseUnsupported(request: Body): void {
  for (const [field, changesNothing] of Object.entries(UNSUPPORTED)) {
    const value = request[field];
    if (value === undefined || changesNothing(value, request)) continue;
    throw new RequestError(
      `Cannot use '${field}': it is not supported. Leave it out`,
      { param: field, code: "unsupported_parameter" },
    );
  }
}

/** Removes null fields, which count as omitted. */
function present(body: Body): Body {
  return Object.fromEntries(
    Object.entries(body).filter(([, value]) => value !== null),
  );
}

function refuse(errors: readonly ErrorObject[]): void {
  // For several forms of a field, the last error names the field, not its forms.
  const error = errors.at(-1);
  if (!error) return;
  const missing = error.keyword === "required"
    ? `/${error.params["missingProperty"]}`
    : "";
  const param = `${error.instancePath}${missing}`.slice(1)
    .replaceAll("/", ".");
  const state = missing === ""
    ? `it ${error.message ?? "does not fit"}`
    : "it is missing";
  throw new RequestError(
    `Cannot use '${param}': ${state}. Correct the request`,
    { param: param || null },
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
