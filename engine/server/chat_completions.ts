/** `/v1/chat/completions`: conversations in the checkpoint's template. */

import type { TemplateMessage } from "../chat.ts";
import { RequestError } from "./errors.ts";
import type { Collected, CollectedToken, Prepared } from "./format.ts";
import { checkPrompt, inRequestAsync } from "./prompts.ts";
import {
  type ChatRequest,
  chatRequest,
  type MessageRequest,
  samplingOf,
  stopTextsOf,
} from "./requests.ts";
import type { Served } from "./served.ts";

/** Prepares the choices of a body. Throws RequestError. */
export async function prepareChat(
  body: { readonly [field: string]: unknown },
  served: Served,
): Promise<Prepared> {
  const request = chatRequest(body);
  const { n = 1, logprobs = false, top_logprobs = 0 } = request;
  if (top_logprobs > 0 && !logprobs) {
    throw new RequestError(
      "Cannot use 'top_logprobs': 'logprobs' is not true. Set it",
      { param: "top_logprobs" },
    );
  }
  const prompt = await encodeConversation(request, served);
  const maxNewTokens = request.max_completion_tokens ?? request.max_tokens ??
    served.shape.maxContext;
  const sampling = samplingOf(request, { ...served.shape, stop: served.stop });
  const logprobsField = async (pieces: readonly CollectedToken[]) =>
    logprobs ? { content: await logprobsOf(pieces, served) } : null;
  return {
    choices: Array.from({ length: n }, (_, stream) => ({
      prompt,
      options: {
        ...sampling,
        stream,
        maxNewTokens,
        ...logprobs ? { logprobs: top_logprobs } : {},
      },
      stopTexts: stopTextsOf(request),
    })),
    promptTokens: prompt.length,
    stream: request.stream ?? false,
    includeUsage: request.stream_options?.include_usage ?? false,
    prefix: "chatcmpl",
    objects: ["chat.completion", "chat.completion.chunk"],
    begin: () => Promise.resolve({ text: "", pieces: [], reason: undefined }),
    whole: async (index, { text, pieces, reason }: Collected) => ({
      index,
      message: { role: "assistant", content: text, refusal: null },
      logprobs: await logprobsField(pieces),
      finish_reason: reason ?? null,
    }),
    first: (index) =>
      Promise.resolve({
        index,
        delta: { role: "assistant", content: "" },
        logprobs: null,
        finish_reason: null,
      }),
    delta: async (index, { text, pieces, reason }) => {
      const says = text !== "" || reason !== undefined ||
        logprobs && pieces.length > 0;
      return says
        ? {
          index,
          delta: text === "" ? {} : { content: text },
          logprobs: pieces.length > 0 ? await logprobsField(pieces) : null,
          finish_reason: reason ?? null,
        }
        : undefined;
    },
  };
}

/** Token ids of a conversation, up to the start of the assistant's turn. */
async function encodeConversation(
  { messages, chat_template_kwargs: values }: ChatRequest,
  served: Served,
): Promise<readonly number[]> {
  const { chat, encoder } = served;
  if ("missing" in chat) {
    throw new RequestError(
      `Cannot answer a conversation: ${chat.missing}. Use /v1/completions`,
    );
  }
  const prompt = await inRequestAsync(async () =>
    await encoder.encodeBare(
      await chat.render(messages.map(templateMessage), { values }),
    )
  );
  checkPrompt(prompt, served, "messages");
  return prompt;
}

/** A message in the format of templates: its content is one text. */
function templateMessage(message: MessageRequest): TemplateMessage {
  const { role, content, ...rest } = message;
  return {
    ...rest,
    role: role === "developer" ? "system" : role,
    content: typeof content === "object" && content !== null
      ? content.map(({ text }) => text).join("")
      : content ?? "",
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
    return { token: text, logprob, bytes: [...new TextEncoder().encode(text)] };
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
