/** `/v1/chat/completions`: conversations in the checkpoint's template. */

import { createAnswer, encodeConversation } from "./conversation.ts";
import { RequestError } from "./errors.ts";
import {
  type Collected,
  type CollectedToken,
  expertsField,
  type Prepared,
} from "./format.ts";
import type { MessageDelta } from "./message/message_text.ts";
import { chatRequest, samplingOf, stopTextsOf } from "./requests.ts";
import type { Served } from "./served.ts";
import { grammarOf } from "./structured.ts";

/** Prepares the choices of a body. Throws RequestError. */
export async function prepareChat(
  body: { readonly [field: string]: unknown },
  served: Served,
): Promise<Prepared> {
  const request = chatRequest(body);
  const { n = 1, logprobs = false, top_logprobs = 0 } = request;
  const { parallel_tool_calls: parallel = true } = request;
  if (top_logprobs > 0 && !logprobs) {
    throw new RequestError(
      "Cannot use 'top_logprobs': 'logprobs' is not true. Set it",
      { param: "top_logprobs" },
    );
  }
  const grammar = await grammarOf(request, served);
  const conversation = await encodeConversation(request, served, {
    // A text grammar may describe calls and reasoning.
    structured: grammar !== undefined && grammar.kind !== "ebnf",
  });
  const { prompt, shown } = conversation;
  const maxNewTokens = request.max_completion_tokens ?? request.max_tokens ??
    served.shape.maxContext;
  const sampling = samplingOf(request, { ...served.shape, stop: served.stop });
  const { seed } = sampling;
  const answers = Array.from(
    { length: n },
    (_, choice) => createAnswer(conversation, { choice, seed, parallel }),
  );
  const reasonOf = (index: number, { reason }: Collected) =>
    reason === "stop" && answers[index]!.calls > 0
      ? "tool_calls"
      : reason ?? null;
  const logprobsField = async (pieces: readonly CollectedToken[]) =>
    logprobs ? { content: await logprobsOf(pieces, served) } : null;
  return {
    kind: "completion",
    choices: Array.from({ length: n }, (_, stream) => ({
      prompt,
      options: {
        ...sampling,
        stream,
        maxNewTokens,
        grammar,
        ...logprobs ? { logprobs: top_logprobs } : {},
      },
      stopTexts: stopTextsOf(request),
      shown,
    })),
    promptTokens: prompt.length,
    stream: request.stream ?? false,
    includeUsage: request.stream_options?.include_usage ?? false,
    prefix: "chatcmpl",
    objects: ["chat.completion", "chat.completion.chunk"],
    begin: () => Promise.resolve({ text: "", pieces: [], reason: undefined }),
    complete: async (index, collected: Collected) => {
      const { text, pieces } = collected;
      const parts = await answers[index]!.split(text, true);
      const { content, ...others } = messageFields(parts);
      const calls = others.tool_calls?.map(({ index: _, ...call }) => call);
      return {
        index,
        message: {
          role: "assistant",
          content: content ?? (calls ? null : ""),
          refusal: null,
          ...others,
          ...calls ? { tool_calls: calls } : {},
        },
        logprobs: await logprobsField(pieces),
        ...expertsField(pieces, request),
        finish_reason: reasonOf(index, collected),
      };
    },
    first: (index) =>
      Promise.resolve({
        index,
        delta: { role: "assistant", content: "" },
        logprobs: null,
        finish_reason: null,
      }),
    delta: async (index, added) => {
      const { text, pieces, reason } = added;
      const parts = await answers[index]!.split(text, reason !== undefined);
      const delta = messageFields(parts);
      const says = Object.keys(delta).length > 0 || reason !== undefined ||
        (logprobs || request.routed_experts) && pieces.length > 0;
      return says
        ? {
          index,
          delta,
          logprobs: pieces.length > 0 ? await logprobsField(pieces) : null,
          ...expertsField(pieces, request),
          finish_reason: reasonOf(index, added),
        }
        : undefined;
    },
  };
}

/** Fields of a message, without empty ones. */
function messageFields({ content, reasoning, calls }: MessageDelta) {
  return {
    ...content === "" ? {} : { content },
    ...reasoning === "" ? {} : { reasoning_content: reasoning },
    ...calls.length === 0 ? {} : {
      tool_calls: calls.map(({ index, id, name, arguments: text }) => ({
        index,
        ...name === undefined ? {} : { id, type: "function" },
        function: {
          ...name === undefined ? {} : { name },
          arguments: text,
        },
      })),
    },
  };
}

async function logprobsOf(
  pieces: readonly CollectedToken[],
  { tokenTexts }: Served,
): Promise<object[]> {
  const entry = async (
    { token, logprob }: { readonly token: number; readonly logprob: number },
  ) => {
    const text = await tokenTexts.of(token);
    return {
      token: text,
      logprob,
      bytes: await tokenTexts.bytesOf(token),
    };
  };
  const content: object[] = [];
  for (const { logprobs } of pieces) {
    if (!logprobs) continue;
    const top: object[] = [];
    for (const one of logprobs.top) top.push(await entry(one));
    content.push({ ...await entry(logprobs), top_logprobs: top });
  }
  return content;
}
