/** JSON Schemas of request bodies. Unlisted fields are ignored, because OpenAI's clients send many. */

import type { Schema } from "../../spec/document/schema.ts";

const text: Schema = { type: "string" };
const flag: Schema = { type: "boolean" };
const token: Schema = { type: "integer", minimum: 0, maximum: 2 ** 31 - 1 };

function number(minimum: number, maximum: number): Schema {
  return { type: "number", minimum, maximum };
}

function integer(minimum: number, maximum: number): Schema {
  return { type: "integer", minimum, maximum };
}

function list(items: Schema, maxItems: number, minItems = 0): Schema {
  return { type: "array", items, minItems, maxItems };
}

/** Maximum prompts per request, choices per prompt, and stop texts per choice. */
const [PROMPTS, CHOICES, STOPS] = [256, 128, 16] as const;

const tokens = list(token, 2 ** 20, 1);

/** Formats of answers. `json_object` may have a schema, too. */
const responseFormat: Schema = {
  anyOf: [
    {
      type: "object",
      required: ["type"],
      properties: {
        type: { enum: ["text", "json_object"] },
        schema: { type: "object" },
      },
    },
    {
      type: "object",
      required: ["type", "json_schema"],
      properties: {
        type: { const: "json_schema" },
        json_schema: {
          type: "object",
          required: ["schema"],
          properties: { schema: { type: "object" } },
        },
      },
    },
  ],
};

const sampling: { readonly [field: string]: Schema } = {
  model: text,
  frequency_penalty: number(-2, 2),
  grammar: { type: "string", maxLength: 2 ** 16 },
  ignore_eos: flag,
  json_schema: { type: "object" },
  logit_bias: {
    type: "object",
    propertyNames: { type: "string", pattern: "^\\d{1,9}$" },
    additionalProperties: number(-100, 100),
    maxProperties: 1024,
  },
  min_p: number(0, 1),
  n: integer(1, CHOICES),
  presence_penalty: number(-2, 2),
  repetition_penalty: number(1e-3, 1e3),
  response_format: responseFormat,
  routed_experts: flag,
  seed: integer(-Number.MAX_SAFE_INTEGER, Number.MAX_SAFE_INTEGER),
  stop: {
    anyOf: [
      { type: "string", minLength: 1, maxLength: 1024 },
      list({ type: "string", minLength: 1, maxLength: 1024 }, STOPS),
    ],
  },
  receipt: flag,
  stream: flag,
  stream_options: {
    type: "object",
    properties: { include_usage: flag },
  },
  temperature: number(0, 100),
  top_k: integer(-1, 2 ** 31 - 1),
  top_p: number(0, 1),
};

/** Schema of `/v1/completions`. */
export const completionSchema: Schema = {
  type: "object",
  required: ["prompt"],
  properties: {
    ...sampling,
    prompt: {
      anyOf: [text, tokens, list(text, PROMPTS, 1), list(tokens, PROMPTS, 1)],
    },
    best_of: integer(1, CHOICES),
    echo: flag,
    logprobs: integer(0, 20),
    max_tokens: integer(0, 2 ** 31 - 1),
  },
};

const textPart: Schema = {
  type: "object",
  required: ["type", "text"],
  properties: { type: { const: "text" }, text },
};

const message: Schema = {
  type: "object",
  required: ["role"],
  properties: {
    role: { enum: ["system", "developer", "user", "assistant", "tool"] },
    content: { anyOf: [text, { type: "null" }, list(textPart, 1024)] },
    name: text,
    tool_call_id: text,
    tool_calls: list({
      type: "object",
      required: ["function"],
      properties: {
        id: text,
        type: { const: "function" },
        function: {
          type: "object",
          required: ["name", "arguments"],
          properties: { name: text, arguments: text },
        },
      },
    }, 128),
  },
};

const toolFields: { readonly [field: string]: Schema } = {
  name: { type: "string", pattern: "^[\\w.-]{1,64}$" },
  description: { anyOf: [text, { type: "null" }] },
  parameters: { anyOf: [{ type: "object" }, { type: "null" }] },
};

const tool: Schema = {
  type: "object",
  required: ["type", "function"],
  properties: {
    type: { const: "function" },
    function: { type: "object", required: ["name"], properties: toolFields },
  },
};

const toolChoice: Schema = {
  anyOf: [
    { enum: ["none", "auto", "required"] },
    {
      type: "object",
      required: ["function"],
      properties: {
        function: {
          type: "object",
          required: ["name"],
          properties: { name: text },
        },
      },
    },
  ],
};

/** Schema of `/v1/chat/completions`. */
export const chatSchema: Schema = {
  type: "object",
  required: ["messages"],
  properties: {
    ...sampling,
    chat_template_kwargs: { type: "object" },
    logprobs: flag,
    max_completion_tokens: integer(1, 2 ** 31 - 1),
    max_tokens: integer(1, 2 ** 31 - 1),
    messages: list(message, 4096, 1),
    parallel_tool_calls: flag,
    reasoning_effort: text,
    tool_choice: toolChoice,
    tools: list(tool, 128),
    top_logprobs: integer(0, 20),
  },
};

const inputText: Schema = {
  type: "object",
  required: ["type", "text"],
  properties: {
    type: { enum: ["input_text", "output_text", "reasoning_text"] },
    text,
  },
};

const inputContent: Schema = { anyOf: [text, list(inputText, 1024)] };

const inputItem: Schema = {
  anyOf: [
    {
      type: "object",
      required: ["role", "content"],
      properties: {
        type: { const: "message" },
        role: { enum: ["system", "developer", "user", "assistant"] },
        content: inputContent,
      },
    },
    {
      type: "object",
      required: ["type", "call_id", "name", "arguments"],
      properties: {
        type: { const: "function_call" },
        call_id: text,
        name: text,
        arguments: text,
      },
    },
    {
      type: "object",
      required: ["type", "call_id", "output"],
      properties: {
        type: { const: "function_call_output" },
        call_id: text,
        output: inputContent,
      },
    },
    {
      type: "object",
      required: ["type"],
      properties: {
        type: { const: "reasoning" },
        content: { anyOf: [{ type: "null" }, list(inputText, 1024)] },
      },
    },
  ],
};

/** Schema of `/v1/responses`. */
export const responseSchema: Schema = {
  type: "object",
  required: ["input"],
  properties: {
    ...sampling,
    input: { anyOf: [text, list(inputItem, 4096, 1)] },
    instructions: text,
    max_output_tokens: integer(1, 2 ** 31 - 1),
    metadata: { type: "object", additionalProperties: text, maxProperties: 16 },
    parallel_tool_calls: flag,
    reasoning: { type: "object", properties: { effort: text } },
    text: {
      type: "object",
      properties: {
        format: {
          anyOf: [
            {
              type: "object",
              required: ["type"],
              properties: { type: { enum: ["text", "json_object"] } },
            },
            {
              type: "object",
              required: ["type", "schema"],
              properties: {
                type: { const: "json_schema" },
                schema: { type: "object" },
              },
            },
          ],
        },
      },
    },
    tool_choice: {
      anyOf: [
        { enum: ["none", "auto", "required"] },
        {
          type: "object",
          required: ["name"],
          properties: { type: { const: "function" }, name: text },
        },
      ],
    },
    tools: list({
      type: "object",
      required: ["type", "name"],
      properties: { type: { const: "function" }, ...toolFields },
    }, 128),
  },
};
