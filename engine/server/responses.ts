/** `/v1/responses`: conversations as items. No response is stored. */

import {
  contentText,
  createAnswer,
  encodeConversation,
} from "./conversation.ts";
import type { PreparedResource } from "./format.ts";
import type { Choice } from "./generation.ts";
import type {
  ChatRequest,
  InputItem,
  MessageRequest,
  ResponseRequest,
} from "./request_types.ts";
import { responseRequest, samplingOf, stopTextsOf } from "./requests.ts";
import { createResource } from "./response_resource.ts";
import type { Served } from "./served.ts";
import { grammarOf } from "./structured.ts";

/** Prepares the choice of a body. Throws RequestError. */
export async function prepareResponse(
  body: { readonly [field: string]: unknown },
  served: Served,
): Promise<PreparedResource> {
  const request = responseRequest(body);
  const chat = chatOf(request);
  const grammar = await grammarOf(chat, served);
  const conversation = await encodeConversation(chat, served, {
    structured: grammar !== undefined && grammar.kind !== "ebnf",
  });
  const { prompt, shown } = conversation;
  const sampling = samplingOf(request, { ...served.shape, stop: served.stop });
  const { parallel_tool_calls: parallel = true } = request;
  const { max_output_tokens: maxNewTokens = served.shape.maxContext } = request;
  const choice: Choice = {
    prompt,
    options: { ...sampling, stream: 0, maxNewTokens, grammar },
    stopTexts: stopTextsOf(request),
    shown,
  };
  return {
    kind: "resource",
    choices: [choice],
    promptTokens: prompt.length,
    stream: request.stream ?? false,
    resource: createResource(request, {
      model: served.name,
      choice,
      answer: createAnswer(conversation, {
        choice: 0,
        seed: sampling.seed,
        parallel,
      }),
    }),
  };
}

/** The request as one of `/v1/chat/completions`. */
function chatOf(request: ResponseRequest): ChatRequest {
  const { input, instructions, text, reasoning, tools, tool_choice } = request;
  const { input: _, text: __, reasoning: ___, ...sampling } = request;
  const items: readonly InputItem[] = typeof input === "string"
    ? [{ role: "user", content: input }]
    : input;
  const format = text?.format;
  return {
    ...sampling,
    messages: [
      ...instructions === undefined
        ? []
        : [{ role: "system" as const, content: instructions }],
      ...messagesOf(items),
    ],
    ...format === undefined ? {} : {
      response_format: format.type === "json_schema"
        ? { type: format.type, json_schema: format }
        : format,
    },
    ...reasoning?.effort === undefined
      ? {}
      : { reasoning_effort: reasoning.effort },
    tools: (tools ?? []).map(({ type, strict: _, ...one }) => ({
      type,
      function: one,
    })),
    tool_choice: typeof tool_choice === "object"
      ? { function: tool_choice }
      : tool_choice ?? "auto",
  };
}

/** Items as messages: reasoning, text and calls in a row are one message of the assistant. */
function messagesOf(items: readonly InputItem[]): MessageRequest[] {
  const messages: MessageRequest[] = [];
  const add = (fields: Partial<MessageRequest>) => {
    const last = messages.at(-1);
    const { tool_calls: calls = [] } = fields;
    if (last?.role !== "assistant") {
      messages.push({ role: "assistant", content: "", ...fields });
    } else {
      messages[messages.length - 1] = {
        ...last,
        ...fields,
        ...calls.length > 0
          ? { tool_calls: [...last.tool_calls ?? [], ...calls] }
          : {},
      };
    }
  };
  for (const item of items) {
    switch (item.type) {
      case undefined:
      case "message": {
        const role = item.role;
        const content = contentText(item.content);
        const last = messages.at(-1);
        const continues = role === "assistant" && last?.role === "assistant" &&
          last.content === "";
        if (continues) add({ content });
        else messages.push({ role, content });
        break;
      }
      case "function_call": {
        const { call_id: id, name, arguments: text } = item;
        const call = {
          id,
          type: "function" as const,
          function: { name, arguments: text },
        };
        add({ tool_calls: [call] });
        break;
      }
      case "function_call_output":
        messages.push({
          role: "tool",
          tool_call_id: item.call_id,
          content: contentText(item.output),
        });
        break;
      case "reasoning":
        messages.push({
          role: "assistant",
          content: "",
          reasoning_content: contentText(item.content ?? []),
        });
        break;
      default:
        item satisfies never;
    }
  }
  return messages;
}
