/** The resource of `/v1/responses`: items of an answer, and the events that build them. */

import type { AnswerMessage } from "./conversation.ts";
import {
  type Collected,
  type CountedTokens,
  countTokens,
  type Resource,
  type ResourceEvent,
} from "./format.ts";
import type { Choice } from "./generation.ts";
import type { CallDelta } from "./message/message_text.ts";
import type { ResponseRequest } from "./request_types.ts";

/** An item of the output. */
interface Item {
  readonly kind: keyof typeof KINDS;
  readonly id: string;
  readonly index: number;
  /** Of a call. */
  readonly call?: Pick<CallDelta, "id" | "name">;
  text: string;
  status: "in_progress" | "completed" | "incomplete";
}

/** Kinds of items: prefix of ids, fields, names of events and the field of their text. */
const KINDS = {
  reasoning: {
    prefix: "rs",
    event: "reasoning_text",
    field: "text",
    part: (text: string) => ({ type: "reasoning_text", text }),
    fields: (_: Item, parts: readonly object[]) => ({
      type: "reasoning",
      summary: [],
      content: parts,
    }),
  },
  message: {
    prefix: "msg",
    event: "output_text",
    field: "text",
    part: (text: string) => ({
      type: "output_text",
      text,
      annotations: [],
      logprobs: [],
    }),
    fields: (_: Item, parts: readonly object[]) => ({
      type: "message",
      role: "assistant",
      content: parts,
    }),
  },
  call: {
    prefix: "fc",
    event: "function_call_arguments",
    field: "arguments",
    part: undefined,
    fields: ({ text, call }: Item) => ({
      type: "function_call",
      call_id: call!.id,
      name: call!.name,
      arguments: text,
    }),
  },
} as const;

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
  const items: Item[] = [];
  let count = 0;
  const counted: CountedTokens = { completion: 0, cached: 0 };
  let reason: Collected["reason"];

  const event = (type: string, fields: object): ResourceEvent => ({
    type: `response.${type}`,
    sequence_number: count++,
    ...fields,
  });
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
    output: items.map(itemFields),
    usage: reason === undefined ? null : {
      input_tokens: promptTokens,
      input_tokens_details: { cached_tokens: counted.cached },
      output_tokens: counted.completion,
      output_tokens_details: { reasoning_tokens: 0 },
      total_tokens: promptTokens + counted.completion,
    },
  });

  /** Ends the last item. */
  const close = (
    status: "completed" | "incomplete" = "completed",
  ): ResourceEvent[] => {
    const item = items.at(-1);
    if (!item || item.status !== "in_progress") return [];
    item.status = status;
    const { event: name, field, part } = KINDS[item.kind];
    const position = fieldsOf(item);
    return [
      event(`${name}.done`, {
        ...position,
        [field]: item.text,
        ...item.kind === "message" ? { logprobs: [] } : {},
        ...item.kind === "call" ? { name: item.call!.name } : {},
      }),
      ...part
        ? [event("content_part.done", { ...position, part: part(item.text) })]
        : [],
      event("output_item.done", {
        output_index: item.index,
        item: itemFields(item),
      }),
    ];
  };

  /** Adds text to the last item, or to a new one. */
  const grow = (
    kind: Item["kind"],
    text: string,
    call?: CallDelta,
  ): ResourceEvent[] => {
    const events: ResourceEvent[] = [];
    const last = items.at(-1);
    let item = last;
    if (
      last?.kind !== kind || last.status !== "in_progress" ||
      call?.name !== undefined
    ) {
      events.push(...close());
      const index = items.length;
      item = {
        kind,
        id: `${KINDS[kind].prefix}_${unique}${index}`,
        index,
        ...call ? { call } : {},
        text: "",
        status: "in_progress",
      };
      const { part } = KINDS[kind];
      events.push(event("output_item.added", {
        output_index: index,
        item: { ...itemFields(item), ...part ? { content: [] } : {} },
      }));
      items.push(item);
      if (part) {
        const added = { ...fieldsOf(item), part: part("") };
        events.push(event("content_part.added", added));
      }
    }
    item!.text += text;
    if (text !== "") {
      events.push(event(`${KINDS[kind].event}.delta`, {
        ...fieldsOf(item!),
        delta: text,
        ...kind === "message" ? { logprobs: [] } : {},
      }));
    }
    return events;
  };

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
        ...reasoning === "" ? [] : grow("reasoning", reasoning),
        ...content === "" ? [] : grow("message", content),
        ...calls.flatMap((call) => grow("call", call.arguments, call)),
      ];
      if (!ends) return events;
      // An answer has at least one item.
      if (items.length === 0) events.push(...grow("message", ""));
      events.push(
        ...close(added.reason === "length" ? "incomplete" : "completed"),
      );
      reason = added.reason;
      const type = statusOf(reason);
      return [...events, event(type, { response: result() })];
    },
    result,
  };
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

/** Fields of events that name an item and its part. */
function fieldsOf({ id, index, kind }: Item): object {
  return {
    item_id: id,
    output_index: index,
    ...kind === "call" ? {} : { content_index: 0 },
  };
}

function itemFields(item: Item): object {
  const { part, fields } = KINDS[item.kind];
  return {
    id: item.id,
    ...fields(item, part ? [part(item.text)] : []),
    status: item.status,
  };
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
