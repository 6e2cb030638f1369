/** Fields of requests that would change a response and are not supported. */

import { RequestError } from "./errors.ts";

type Body = { readonly [field: string]: unknown };

/** Fields that a route does not support. */
export interface Unsupported {
  /** Whether a value changes nothing. */
  readonly fields: {
    readonly [field: string]: (value: unknown, request: Body) => boolean;
  };
  /** Supported fields with the same effect. */
  readonly instead: { readonly [field: string]: string };
}

/** Fields of OpenAI, vLLM and llama.cpp that no route supports. */
const ANYWHERE: Unsupported["fields"] = {
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

/** Supported fields with the same effect as others. */
const INSTEAD: Unsupported["instead"] = {
  guided_choice: "grammar",
  guided_grammar: "grammar",
  guided_json: "json_schema",
  guided_regex: "grammar",
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

/** Names of the maximum number of new tokens, also in llama.cpp. */
const LIMITS = [
  "max_completion_tokens",
  "max_output_tokens",
  "max_tokens",
  "n_predict",
];

/** The fields that a route does not support, besides those of ANYWHERE. */
function unsupportedBy(
  fields: Unsupported["fields"],
  { limits }: {
    /** Its names of the maximum number of new tokens. The first is recommended. */
    readonly limits: readonly [string, ...string[]];
  },
): Unsupported {
  const others = LIMITS.filter((name) => !limits.includes(name));
  const each = <T>(value: T) =>
    Object.fromEntries(others.map((name) => [name, value]));
  return {
    fields: { ...ANYWHERE, ...each(never), ...fields },
    instead: { ...INSTEAD, ...each(limits[0]) },
  };
}

/** Fields that `/v1/completions` does not support. */
export const COMPLETION = unsupportedBy(
  { top_logprobs: isOff },
  { limits: ["max_tokens"] },
);

/** Fields that `/v1/chat/completions` does not support. */
export const CHAT = unsupportedBy(
  { echo: isOff },
  { limits: ["max_completion_tokens", "max_tokens"] },
);

/** Fields that `/v1/responses` does not support. */
export const RESPONSE = unsupportedBy({
  echo: isOff,
  include: (value) =>
    !Array.isArray(value) || !value.includes("message.output_text.logprobs"),
  logprobs: isOff,
  n: (value) => value === 1,
  prompt: never,
  receipt: isOff,
  routed_experts: isOff,
  top_logprobs: isOff,
}, { limits: ["max_output_tokens"] });

/** Throws RequestError for fields that a route does not support. */
export function refuseUnsupported(
  request: Body,
  { fields, instead }: Unsupported,
): void {
  for (const [field, changesNothing] of Object.entries(fields)) {
    const value = request[field];
    if (value === undefined || changesNothing(value, request)) continue;
    const other = instead[field];
    throw new RequestError(
      `Cannot use '${field}': it is not supported. ${
        other === undefined ? "Leave it out" : `Use '${other}'`
      }`,
      { param: field, code: "unsupported_parameter" },
    );
  }
}
