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
import {
  CHAT,
  COMPLETION,
  refuseUnsupported,
  RESPONSE,
  type Unsupported,
} from "./unsupported.ts";

type Body = { readonly [field: string]: unknown };

/** Checks a body of `/v1/completions`. Throws RequestError. */
export function completionRequest(body: Body): CompletionRequest {
  return checked(
    body,
    completionErrors,
    COMPLETION,
  ) as unknown as CompletionRequest;
}

/** Checks a body of `/v1/chat/completions`. Throws RequestError. */
export function chatRequest(body: Body): ChatRequest {
  return checked(body, chatErrors, CHAT) as unknown as ChatRequest;
}

/** Checks a body of `/v1/responses`. Throws RequestError. */
export function responseRequest(body: Body): ResponseRequest {
  return checked(body, responseErrors, RESPONSE) as unknown as ResponseRequest;
}

function checked(
  body: Body,
  errorsOf: (body: Body) => readonly ErrorObject[],
  unsupported: Unsupported,
): Body {
  const request = present(body);
  refuse(errorsOf(request));
  refuseUnsupported(request, unsupported);
  return request;
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
