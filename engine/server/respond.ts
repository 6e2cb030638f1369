/** Responses: one JSON object, or a stream of server-sent events. */

import { RequestError } from "./errors.ts";
import {
  type Collected,
  type CountedTokens,
  countTokens,
  type Prepared,
  type PreparedCompletion,
  type PreparedResource,
  type ResourceEvent,
  usageOf,
} from "./format.ts";
import { type ChoiceEvent, generateChoices } from "./generation.ts";
import { hasReceipt, receiptFields } from "./receipts.ts";
import { VERSION } from "../version.ts";
import type { Served } from "./served.ts";

/** Context of a response besides the request. */
export interface RespondOptions {
  readonly served: Served;
  /** Aborted, with an error as its reason, if no client waits for the response any more. */
  readonly signal: AbortSignal;
}

/** Fields of every object of a response. */
function headOf({ prefix, objects }: PreparedCompletion, { name }: Served): {
  readonly id: string;
  readonly object: string;
  readonly created: number;
  readonly model: string;
  readonly system_fingerprint: string;
} {
  return {
    id: `${prefix}-${crypto.randomUUID().replaceAll("-", "")}`,
    object: objects[0],
    created: Math.floor(Date.now() / 1000),
    model: name,
    system_fingerprint: `b${VERSION}`,
  };
}

/** The complete response. Throws RequestError. */
export async function respondOnce(
  prepared: Prepared,
  options: RespondOptions,
): Promise<object> {
  if (prepared.kind === "resource") {
    const { resource } = prepared;
    for await (const events of eventsOf(prepared, options)) {
      for (const part of events.flatMap(partsOf)) await resource.add(part);
    }
    return resource.result();
  }
  const collected = await begin(prepared);
  for await (const events of eventsOf(prepared, options)) {
    for (const event of events) collect(collected[event.choice]!, event);
  }
  const choices: object[] = [];
  const counted: CountedTokens = { completion: 0, cached: 0 };
  for (const [i, choice] of collected.entries()) {
    choices.push(await prepared.complete(i, choice));
    countTokens(counted, choice, prepared.choices[i]!);
  }
  return {
    ...headOf(prepared, options.served),
    choices,
    usage: usageOf(prepared.promptTokens, counted),
    ...await receiptFields(prepared, collected, options),
  };
}

/** The response as server-sent events. An error ends it as a separate event. */
export function respondStream(
  prepared: Prepared,
  options: RespondOptions,
): AsyncGenerator<string, void, undefined> {
  return prepared.kind === "resource"
    ? streamResource(prepared, options)
    : streamChoices(prepared, options);
}

async function* streamResource(
  prepared: PreparedResource,
  options: RespondOptions,
): AsyncGenerator<string, void, undefined> {
  const { resource } = prepared;
  const textOf = (event: ResourceEvent) =>
    `event: ${event.type}\ndata: ${JSON.stringify(event)}\n\n`;
  try {
    yield* resource.begin().map(textOf);
    for await (const events of eventsOf(prepared, options)) {
      let text = "";
      for (const part of events.flatMap(partsOf)) {
        for (const event of await resource.add(part)) text += textOf(event);
      }
      if (text !== "") yield text;
    }
    yield "data: [DONE]\n\n";
  } catch (error) {
    if (!(error instanceof RequestError)) throw error;
    yield textOf({ type: "error", ...error.body });
  }
}

async function* streamChoices(
  prepared: PreparedCompletion,
  options: RespondOptions,
): AsyncGenerator<string, void, undefined> {
  const { includeUsage, promptTokens, objects } = prepared;
  const head = { ...headOf(prepared, options.served), object: objects[1] };
  const event = (value: object) => `data: ${JSON.stringify(value)}\n\n`;
  // Only the choice differs between chunks.
  const [before, after] = [
    `data: ${JSON.stringify(head).slice(0, -1)},"choices":[`,
    includeUsage ? '],"usage":null}\n\n' : "]}\n\n",
  ];
  const chunk = (choice: object) =>
    `${before}${JSON.stringify(choice)}${after}`;
  const counted: CountedTokens = { completion: 0, cached: 0 };
  try {
    const collected = await begin(prepared);
    for (const [i, begun] of collected.entries()) {
      const first = await prepared.first(i, begun);
      if (first) yield chunk(first);
    }
    for await (const events of eventsOf(prepared, options)) {
      let text = "";
      for (const event of events) {
        for (const part of partsOf(event)) {
          countTokens(counted, part, prepared.choices[event.choice]!);
          if (hasReceipt(prepared)) {
            collected[event.choice]!.pieces.push(...part.pieces);
          }
          const delta = await prepared.delta(event.choice, part);
          if (delta) text += chunk(delta);
        }
      }
      if (text !== "") yield text;
    }
    if (hasReceipt(prepared)) {
      const receipt = await receiptFields(prepared, collected, options);
      yield event({ ...head, choices: [], ...receipt });
    }
    if (includeUsage) {
      const usage = usageOf(promptTokens, counted);
      yield event({ ...head, choices: [], usage });
    }
    yield "data: [DONE]\n\n";
  } catch (error) {
    if (!(error instanceof RequestError)) throw error;
    yield event(error.body);
  }
}

function eventsOf(
  { choices, stream }: Prepared,
  { served, signal }: RespondOptions,
): AsyncGenerator<readonly ChoiceEvent[]> {
  const { loop, decoder: tokenizer } = served;
  const complete = !stream;
  return generateChoices(choices, { loop, tokenizer, signal, complete });
}

async function begin(prepared: PreparedCompletion): Promise<Collected[]> {
  return await Promise.all(
    prepared.choices.map((_, choice) => prepared.begin(choice)),
  );
}

function collect(into: Collected, event: ChoiceEvent): void {
  for (const { text, pieces, reason } of partsOf(event)) {
    into.text += text;
    into.pieces.push(...pieces);
    into.reason = reason;
  }
}

/** An event as chunks, one per token, so that streams do not depend on when tokens arrive. */
function partsOf(event: ChoiceEvent): Collected[] {
  switch (event.kind) {
    case "forced":
      return event.tokens.map((token) => ({
        text: "",
        pieces: [{ ...token, text: undefined }],
        reason: undefined,
      }));
    case "pieces":
      return event.pieces.map((piece) => ({
        text: piece.text,
        pieces: [piece],
        reason: undefined,
      }));
    case "end":
      return [
        ...event.text === ""
          ? []
          : [{ text: event.text, pieces: [], reason: undefined }],
        { text: "", pieces: [], reason: event.reason },
      ];
    default:
      return event satisfies never;
  }
}
