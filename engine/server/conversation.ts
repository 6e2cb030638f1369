/** Conversations in the checkpoint's template: their tokens, and the format of the answer. */

import type { ChatTemplate, TemplateMessage } from "../checkpoint/chat.ts";
import { sha256 } from "../digest.ts";
import { RequestError } from "./errors.ts";
import {
  DEMANDED_CALLS,
  reasoningFormatOf,
  toolFormatOf,
} from "./message/formats.ts";
import {
  type CallDelta,
  type MessageDelta,
  type MessageFormat,
  MessageText,
} from "./message/message_text.ts";
import { checkPrompt, inRequestAsync } from "./prompts.ts";
import type {
  ChatRequest,
  MessageRequest,
  TextPart,
  ToolRequest,
} from "./request_types.ts";
import type { Served } from "./served.ts";
import { demandedTools } from "./structured.ts";

/** A conversation up to the start of the assistant's turn. */
export interface Conversation {
  /** Token ids. */
  readonly prompt: readonly number[];
  /** The format of the answer. Undefined: all of it is content. */
  readonly format: MessageFormat | undefined;
  /** Texts of the format, whose special tokens are part of the answer. */
  readonly shown: readonly string[];
}

/** Fields of a request that determine its conversation. */
export type ConversationRequest = Pick<
  ChatRequest,
  | "messages"
  | "tools"
  | "tool_choice"
  | "chat_template_kwargs"
  | "reasoning_effort"
>;

/** Encodes a conversation. `structured`: whether its answer is JSON of a grammar. Throws RequestError. */
export async function encodeConversation(
  request: ConversationRequest,
  served: Served,
  { structured }: { readonly structured: boolean },
): Promise<Conversation> {
  const { chat, encoder } = served;
  if ("missing" in chat) {
    throw new RequestError(
      `Cannot answer a conversation with '${served.name}': ${chat.missing}. Use /v1/completions`,
    );
  }
  const { chat_template_kwargs, reasoning_effort, tool_choice = "auto" } =
    request;
  const tools = tool_choice === "none" ? [] : request.tools ?? [];
  const format = toolFormatOf(chat.source);
  if (tools.length > 0 && !format && !structured) {
    throw new RequestError(
      "Cannot use 'tools': the checkpoint's chat template has no known format of calls. Leave it out",
      { param: "tools", code: "unsupported_parameter" },
    );
  }
  const reasoning = reasoningFormatOf(chat.source);
  const { text, prompt } = await inRequestAsync(async () => {
    const messages = await templateMessages(request.messages, chat);
    const text = await chat.render(messages, {
      values: {
        ...chat_template_kwargs,
        ...reasoning_effort === undefined ? {} : { reasoning_effort },
      },
      ...tools.length > 0 ? { tools } : {},
    });
    return { text, prompt: await encoder.encodeBare(text) };
  });
  checkPrompt(prompt, served, "messages");
  if (structured) {
    const calls = demandedTools(request) && DEMANDED_CALLS;
    return {
      prompt,
      format: calls && {
        tools: calls,
        hidden: [],
        typeOf: () => undefined,
        reasoning: undefined,
        begins: "calls",
      },
      shown: [],
    };
  }
  const calls = tools.length > 0 ? format : undefined;
  const hidden = [...format?.hidden ?? [], ...reasoning?.hidden ?? []];
  if (!calls && !reasoning && hidden.length === 0) {
    return { prompt, format: undefined, shown: [] };
  }
  return {
    prompt,
    format: {
      tools: calls,
      hidden,
      typeOf: typesOf(tools),
      reasoning,
      begins: reasoning && text.trimEnd().endsWith(reasoning.open)
        ? "reasoning"
        : "content",
    },
    shown: [
      ...calls?.open ?? [],
      ...calls?.close === undefined ? [] : [calls.close],
      ...calls?.inner ?? [],
      ...hidden,
      ...reasoning ? [reasoning.open, reasoning.close] : [],
    ],
  };
}

/** Types of parameters in the schemas of tools. */
function typesOf(tools: readonly ToolRequest[]): MessageFormat["typeOf"] {
  return (name, parameter) => {
    const schema = tools.find((tool) => tool.function.name === name)
      ?.function.parameters as
        | {
          readonly properties?: {
            readonly [name: string]: { readonly type?: unknown } | undefined;
          };
        }
        | undefined;
    return schema?.properties?.[parameter]?.type;
  };
}

/**
 * Messages in the format of templates: a content is one text, and arguments of calls are objects if templates accept
 * them.
 */
async function templateMessages(
  messages: readonly MessageRequest[],
  chat: ChatTemplate,
): Promise<TemplateMessage[]> {
  const objects = messages.some(({ tool_calls }) => tool_calls) &&
    await acceptsObjects(chat);
  return messages.map((message) => {
    const { role, content, tool_calls, ...rest } = message;
    return {
      ...rest,
      role: role === "developer" ? "system" : role,
      content: contentText(content ?? ""),
      ...tool_calls
        ? { tool_calls: objects ? tool_calls.map(withObject) : tool_calls }
        : {},
    };
  });
}

/** The text of a content. */
export function contentText(
  content: string | readonly (TextPart | { readonly refusal: string })[],
): string {
  return typeof content === "string"
    ? content
    : content.map((part) => "text" in part ? part.text : part.refusal).join("");
}

type ToolCallRequest = NonNullable<MessageRequest["tool_calls"]>[number];

/** A call whose arguments are an object. */
function withObject(call: ToolCallRequest): object {
  const { name, arguments: text } = call.function;
  try {
    const value: unknown = JSON.parse(text || "{}");
    return { ...call, function: { name, arguments: value } };
  } catch {
    throw new RequestError(
      `Cannot use 'messages': the arguments of a call of '${
        name.slice(0, 64)
      }' are not JSON. Send them as the model did`,
      { param: "messages" },
    );
  }
}

const accepted = new WeakMap<ChatTemplate, Promise<boolean>>();

/** Whether a template prints arguments of calls that are objects; some expect JSON. */
function acceptsObjects(chat: ChatTemplate): Promise<boolean> {
  const known = accepted.get(chat) ?? chat.render([
    { role: "user", content: "-" },
    {
      role: "assistant",
      content: "",
      tool_calls: [{
        id: "123456789",
        type: "function",
        function: { name: "f", arguments: { probe: 1 } },
      }],
    },
  ]).then((text) => /"probe"|probe[=>]/.test(text), () => false);
  accepted.set(chat, known);
  return known;
}

/** The answer of one choice. */
export interface AnswerMessage {
  /** Splits further text, and the rest after the end. Ids of calls depend only on the request. */
  split(text: string, ended: boolean): Promise<MessageDelta>;
  /** Number of calls so far. */
  readonly calls: number;
}

/** Creates the answer of a choice. */
export function createAnswer(
  { format, prompt }: Conversation,
  { choice, seed, parallel }: {
    readonly choice: number;
    readonly seed: number;
    /** Whether calls after the first one are part of the answer. */
    readonly parallel: boolean;
  },
): AnswerMessage {
  const text = format && new MessageText(format);
  return {
    get calls() {
      return Math.min(text?.calls ?? 0, parallel ? Infinity : 1);
    },
    split: async (added, ended) => {
      if (!text) return { content: added, reasoning: "", calls: [] };
      const parts = [text.push(added), ...ended ? [text.end()] : []];
      const calls = await Promise.all(
        mergeCalls(parts.flatMap(({ calls }) => calls))
          .filter(({ index }) => parallel || index === 0)
          .map(async (call) =>
            call.name === undefined || call.id !== undefined ? call : {
              ...call,
              id: await callId([...prompt, seed, choice, call.index]),
            }
          ),
      );
      return {
        content: parts.map(({ content }) => content).join(""),
        reasoning: parts.map(({ reasoning }) => reasoning).join(""),
        calls,
      };
    },
  };
}

/** One delta for each call. */
function mergeCalls(deltas: readonly CallDelta[]): CallDelta[] {
  const merged = new Map<number, CallDelta>();
  for (const delta of deltas) {
    const { index, arguments: text } = delta;
    const before = merged.get(index);
    merged.set(
      index,
      before ? { ...before, arguments: before.arguments + text } : delta,
    );
  }
  return [...merged.values()];
}

/** An id of 9 characters, as Mistral's templates require. */
async function callId(parts: readonly number[]): Promise<string> {
  return (await sha256(parts.join())).slice(0, 9);
}
