/** The items of the output of `/v1/responses`, and the events that build them. */

import type { ResourceEvent } from "./format.ts";
import type { CallDelta } from "./message/message_text.ts";

/** An item of the output. */
interface Item {
  readonly kind: keyof typeof KINDS;
  readonly id: string;
  readonly index: number;
  /** Of a call. */
  readonly call?: Pick<CallDelta, "id" | "name">;
  text: string;
  status: "in_progress" | FinalStatus;
}

/** The status of an item after its end. */
type FinalStatus = "completed" | "incomplete";

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

/** Creates the next event of a response. */
export type CreateEvent = (type: string, fields: object) => ResourceEvent;

/** The items of an output. Only the last one may be in progress. */
export interface ItemList {
  /** Whether there are no items. */
  isEmpty(): boolean;
  /** The items, as fields of a resource. */
  fields(): readonly object[];
  /** Appends text to the last item, or to a new one if that has ended, has another kind or is another call. */
  grow(
    kind: Item["kind"],
    text: string,
    call?: CallDelta,
  ): readonly ResourceEvent[];
  /** Ends the last item. Default status: completed. */
  close(status?: FinalStatus): readonly ResourceEvent[];
}

/** Creates an empty list of items. Their ids contain `unique`. */
export function createItems(unique: string, event: CreateEvent): ItemList {
  const items: Item[] = [];
  const current = () => {
    const last = items.at(-1);
    return last?.status === "in_progress" ? last : undefined;
  };
  const close = (
    status: FinalStatus = "completed",
  ): readonly ResourceEvent[] => {
    const item = current();
    if (!item) return [];
    item.status = status;
    return endEvents(item, event);
  };
  return {
    isEmpty: () => items.length === 0,
    fields: () => items.map(itemFields),
    grow: (kind, text, call) => {
      const events: ResourceEvent[] = [];
      let item = current();
      if (item?.kind !== kind || call?.name !== undefined) {
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
        items.push(item);
        events.push(...beginEvents(item, event));
      }
      item.text += text;
      if (text !== "") events.push(deltaEvent(item, text, event));
      return events;
    },
    close,
  };
}

/** Events of a new item. */
function beginEvents(item: Item, event: CreateEvent): ResourceEvent[] {
  const { part } = KINDS[item.kind];
  const added = event("output_item.added", {
    output_index: item.index,
    item: { ...itemFields(item), ...part ? { content: [] } : {} },
  });
  return part
    ? [
      added,
      event("content_part.added", { ...positionOf(item), part: part("") }),
    ]
    : [added];
}

/** The event of text that was appended to an item. */
function deltaEvent(
  item: Item,
  delta: string,
  event: CreateEvent,
): ResourceEvent {
  return event(`${KINDS[item.kind].event}.delta`, {
    ...positionOf(item),
    delta,
    ...item.kind === "message" ? { logprobs: [] } : {},
  });
}

/** Events of an item that has ended. */
function endEvents(item: Item, event: CreateEvent): ResourceEvent[] {
  const { event: name, field, part } = KINDS[item.kind];
  const position = positionOf(item);
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
}

/** Fields of events that name an item and its part. */
function positionOf({ id, index, kind }: Item): object {
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
