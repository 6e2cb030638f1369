/** The resource of `/v1/responses`: the state of an answer. */

import type { AnswerMessage } from "./conversation.ts";
import {
  type Collected,
  type CountedTokens,
  countTokens,
  type Resource,
} from "./format.ts";
import type { Choice } from "./generation.ts";
import type { ResponseRequest } from "./request_types.ts";
import { type CreateEvent, createItems } from "./response_items.ts";

/** Creates the resource of a request. */
export function createResource(
  request: ResponseRequest,
  { model, choice, answer }: {
    readonly model: string;
    readonly choice: Choice;
    readonly answer: AnswerMessage;
  },
): Resource {
  const promptTokens = choice.prompt.length;
  const unique = crypto.randomUUID().replaceAll("-", "");
  const created = seconds();
  const event = createEvents();
  const items = createItems(unique, event);
  const counted: CountedTokens = { completion: 0, cached: 0 };
  let reason: Collected["reason"];

  const result = () => ({
    ...settingsOf(request),
    id: `resp_${unique}`,
    object: "response",
    created_at: created,
    completed_at: reason === "stop" ? seconds() : null,
    status: statusOf(reason),
    incomplete_details: reason === "length"
      ? { reason: "max_output_tokens" }
      : null,
    model,
    output: items.fields(),
    usage: reason === undefined ? null : {
      input_tokens: promptTokens,
      input_tokens_details: { cached_tokens: counted.cached },
      output_tokens: counted.completion,
      output_tokens_details: { reasoning_tokens: 0 },
      total_tokens: promptTokens + counted.completion,
    },
  });
  return {
    begin: () =>
      ["created", "in_progress"].map((type) =>
        event(type, { response: result() })
      ),
    add: async (added) => {
      countTokens(counted, added, choice);
      const ends = added.reason !== undefined;
      const { content, reasoning, calls } = await answer.split(
        added.text,
        ends,
      );
      const events = [
        ...reasoning === "" ? [] : items.grow("reasoning", reasoning),
        ...content === "" ? [] : items.grow("message", content),
        ...calls.flatMap((call) => items.grow("call", call.arguments, call)),
      ];
      if (!ends) return events;
      // An answer has at least one item.
      if (items.isEmpty()) events.push(...items.grow("message", ""));
      events.push(
        ...items.close(added.reason === "length" ? "incomplete" : "completed"),
      );
      reason = added.reason;
      const type = statusOf(reason);
      return [...events, event(type, { response: result() })];
    },
    result,
  };
}

/** Creates events that are numbered from 0. */
function createEvents(): CreateEvent {
  let count = 0;
  return (type, fields) => ({
    type: `response.${type}`,
    sequence_number: count++,
    ...fields,
  });
}

function seconds(): number {
  return Math.floor(Date.now() / 1000);
}

function statusOf(reason: Collected["reason"]): string {
  return reason === undefined
    ? "in_progress"
    : reason === "length"
    ? "incomplete"
    : "completed";
}

/** Fields of a resource that repeat the request. */
function settingsOf(request: ResponseRequest): object {
  return {
    background: false,
    error: null,
    frequency_penalty: request.frequency_penalty ?? 0,
    instructions: request.instructions ?? null,
    max_output_tokens: request.max_output_tokens ?? null,
    max_tool_calls: null,
    metadata: request.metadata ?? {},
    parallel_tool_calls: request.parallel_tool_calls ?? true,
    presence_penalty: request.presence_penalty ?? 0,
    previous_response_id: null,
    prompt_cache_key: null,
    reasoning: request.reasoning
      ? { effort: request.reasoning.effort ?? null, summary: null }
      : null,
    safety_identifier: null,
    service_tier: "default",
    store: false,
    temperature: request.temperature ?? 1,
    text: { format: request.text?.format ?? { type: "text" } },
    tool_choice: request.tool_choice ?? "auto",
    tools: (request.tools ?? []).map((tool) => ({
      type: tool.type,
      name: tool.name,
      description: tool.description ?? null,
      parameters: tool.parameters ?? null,
      strict: tool.strict ?? false,
    })),
    top_logprobs: 0,
    top_p: request.top_p ?? 1,
    truncation: "disabled",
    user: null,
  };
}
