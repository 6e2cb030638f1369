/**
 * Request bodies. `scripts/schemas.mjs` generates their schemas from these types. Unlisted fields are ignored, because
 * OpenAI's clients send many.
 */

/**
 * A token id.
 *
 * @integer
 * @minimum 0
 * @maximum 2 ** 31 - 1
 */
type Token = number;

/**
 * Token ids of a prompt.
 *
 * @minItems 1
 * @maxItems 2 ** 20
 */
type Tokens = readonly Token[];

/**
 * Several prompts.
 *
 * @minItems 1
 * @maxItems 256
 */
type Prompts<T> = readonly T[];

/**
 * A number of choices of a prompt.
 *
 * @integer
 * @minimum 1
 * @maximum 128
 */
type Choices = number;

/**
 * A number of likeliest tokens.
 *
 * @integer
 * @minimum 0
 * @maximum 20
 */
type TopCount = number;

/**
 * A maximum number of new tokens.
 *
 * @integer
 * @minimum 1
 * @maximum 2 ** 31 - 1
 */
type NewTokens = number;

/**
 * A probability.
 *
 * @minimum 0
 * @maximum 1
 */
type Probability = number;

/**
 * A penalty.
 *
 * @minimum -2
 * @maximum 2
 */
type Penalty = number;

/**
 * A number added to a logit.
 *
 * @minimum -100
 * @maximum 100
 */
type Bias = number;

/**
 * Text that ends a choice.
 *
 * @minLength 1
 * @maxLength 1024
 */
type StopText = string;

/**
 * Texts that end a choice.
 *
 * @maxItems 16
 */
type StopTexts = readonly StopText[];

/**
 * Parts of a message.
 *
 * @maxItems 1024
 */
type Parts<T> = readonly T[];

/** Any JSON object. */
interface AnyObject {
  readonly [field: string]: unknown;
}

/** Fields of all requests. */
export interface SamplingRequest {
  readonly model?: string;
  readonly frequency_penalty?: Penalty;
  /**
   * A grammar in EBNF.
   *
   * @maxLength 2 ** 16
   */
  readonly grammar?: string;
  /** Whether stop tokens are ignored. */
  readonly ignore_eos?: boolean;
  /** A JSON Schema, as in `response_format`. */
  readonly json_schema?: AnyObject;
  /**
   * By token id.
   *
   * @names ^\d{1,9}$
   * @maxProperties 1024
   */
  readonly logit_bias?: { readonly [token: string]: Bias };
  readonly min_p?: Probability;
  readonly n?: Choices;
  readonly presence_penalty?: Penalty;
  /** Whether the response has a receipt. */
  readonly receipt?: boolean;
  /**
   * Divides positive logits of earlier tokens.
   *
   * @minimum 1e-3
   * @maximum 1e3
   */
  readonly repetition_penalty?: number;
  /** `json_object` may have a schema, too. */
  readonly response_format?:
    | { readonly type: "text" }
    | { readonly type: "json_object"; readonly schema?: AnyObject }
    | {
      readonly type: "json_schema";
      readonly json_schema: { readonly schema: AnyObject };
    };
  /** Whether a choice has the experts of its tokens. */
  readonly routed_experts?: boolean;
  /**
   * Any integer.
   *
   * @integer
   * @minimum -Number.MAX_SAFE_INTEGER
   * @maximum Number.MAX_SAFE_INTEGER
   */
  readonly seed?: number;
  readonly stop?: StopText | StopTexts;
  readonly stream?: boolean;
  readonly stream_options?: { readonly include_usage?: boolean };
  /**
   * Divides logits.
   *
   * @minimum 0
   * @maximum 100
   */
  readonly temperature?: number;
  /**
   * Below 1: all tokens.
   *
   * @integer
   * @minimum -1
   * @maximum 2 ** 31 - 1
   */
  readonly top_k?: number;
  readonly top_p?: Probability;
}

/** A body of `/v1/completions`. */
export interface CompletionRequest extends SamplingRequest {
  readonly prompt: string | Tokens | Prompts<string> | Prompts<Tokens>;
  readonly best_of?: Choices;
  readonly echo?: boolean;
  readonly logprobs?: TopCount;
  /**
   * Maximum number of new tokens.
   *
   * @integer
   * @minimum 0
   * @maximum 2 ** 31 - 1
   */
  readonly max_tokens?: number;
}

/** A part of a message. */
export interface TextPart {
  readonly text: string;
}

/** A part of a message in `/v1/chat/completions`. Parts of earlier answers may be refusals. */
type ChatPart =
  | { readonly type: "text" } & TextPart
  | { readonly type: "refusal"; readonly refusal: string };

/** A message of a conversation. */
export interface MessageRequest {
  readonly role: "system" | "developer" | "user" | "assistant" | "tool";
  readonly content?: string | Parts<ChatPart>;
  readonly name?: string;
  readonly tool_call_id?: string;
  /**
   * Calls of an assistant.
   *
   * @maxItems 128
   */
  readonly tool_calls?: readonly {
    readonly id?: string;
    readonly type?: "function";
    readonly function: { readonly name: string; readonly arguments: string };
  }[];
  readonly [field: string]: unknown;
}

/** A function that a model may call. */
export interface FunctionRequest {
  /**
   * Name of the function.
   *
   * @pattern ^[\w.-]{1,64}$
   */
  readonly name: string;
  readonly description?: string;
  /** JSON Schema of its arguments. */
  readonly parameters?: AnyObject;
}

/** A tool of a conversation. */
export interface ToolRequest {
  readonly type: "function";
  readonly function: FunctionRequest;
}

/** A body of `/v1/chat/completions`. */
export interface ChatRequest extends SamplingRequest {
  readonly chat_template_kwargs?: AnyObject;
  readonly logprobs?: boolean;
  readonly max_completion_tokens?: NewTokens;
  readonly max_tokens?: NewTokens;
  /**
   * The conversation.
   *
   * @minItems 1
   * @maxItems 4096
   */
  readonly messages: readonly MessageRequest[];
  /** Whether a message may have several calls. Default: true. */
  readonly parallel_tool_calls?: boolean;
  readonly reasoning_effort?: string;
  readonly tool_choice?: "none" | "auto" | "required" | {
    readonly function: { readonly name: string };
  };
  /**
   * Functions that the model may call.
   *
   * @maxItems 128
   */
  readonly tools?: readonly ToolRequest[];
  readonly top_logprobs?: TopCount;
}

/** A part of an item of text. */
interface InputText extends TextPart {
  readonly type: "input_text" | "output_text" | "reasoning_text";
}

/** An item of a conversation. */
export type InputItem =
  | {
    readonly type?: "message";
    readonly role: "system" | "developer" | "user" | "assistant";
    readonly content: string | Parts<InputText>;
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
    readonly output: string | Parts<InputText>;
  }
  | {
    readonly type: "reasoning";
    readonly content?: Parts<InputText>;
  };

/**
 * Items of a conversation.
 *
 * @minItems 1
 * @maxItems 4096
 */
type InputItems = readonly InputItem[];

/** A tool of a response. */
interface ResponseTool extends FunctionRequest {
  readonly type: "function";
  readonly strict?: boolean;
}

/** A body of `/v1/responses`. */
export interface ResponseRequest extends SamplingRequest {
  readonly input: string | InputItems;
  readonly instructions?: string;
  readonly max_output_tokens?: NewTokens;
  /**
   * Returned with the response.
   *
   * @maxProperties 16
   */
  readonly metadata?: { readonly [key: string]: string };
  readonly parallel_tool_calls?: boolean;
  readonly reasoning?: { readonly effort?: string };
  readonly text?: {
    readonly format?:
      | { readonly type: "text" }
      | { readonly type: "json_object" }
      | { readonly type: "json_schema"; readonly schema: AnyObject };
  };
  readonly tool_choice?: "none" | "auto" | "required" | {
    readonly type?: "function";
    readonly name: string;
  };
  /**
   * Functions that the model may call.
   *
   * @maxItems 128
   */
  readonly tools?: readonly ResponseTool[];
}
