/** Generates the choices of one request: adds them to the loop, and streams their text. */

import type { Ending } from "../generation/sequence.ts";
import {
  Answer,
  type Chosen,
  type FinishReason,
  type Piece,
} from "./answer.ts";
import { RequestError } from "./errors.ts";
import type { LoopFailure, RemoteLoop, RemoteSequence } from "./remote_loop.ts";
import type { Tokenizer } from "../text/tokenizer.ts";

/** A choice of a response. */
export interface Choice {
  /** Token ids. */
  readonly prompt: readonly number[];
  readonly options: Omit<
    RemoteSequence,
    "onToken" | "onEnd" | "onFail" | "waits"
  >;
  /** Texts that end it. */
  readonly stopTexts: readonly string[];
  /** Texts whose special tokens are part of its text. Default: none. */
  readonly shown?: readonly string[];
}

/** An event of a choice. */
export type ChoiceEvent =
  & { readonly choice: number }
  & (
    /** Forced tokens, which are the prompt's text. */
    | { readonly kind: "forced"; readonly tokens: readonly Chosen[] }
    | { readonly kind: "pieces"; readonly pieces: readonly Piece[] }
    /** `text`: the held-back text. */
    | {
      readonly kind: "end";
      readonly text: string;
      readonly reason: FinishReason;
    }
  );

/** Server objects that a request uses. */
export interface GenerateChoicesOptions {
  readonly loop: RemoteLoop;
  readonly tokenizer: Tokenizer;
  /** Whether text is decoded once a choice has ended. Default: false, as it grows. */
  readonly complete?: boolean;
  /** If it is aborted, its reason, an error, is thrown, and sequences are cancelled. */
  readonly signal: AbortSignal;
}

interface Growing {
  readonly answer: Answer;
  readonly index: number;
  /** Tokens that are not yet text. */
  readonly chosen: Chosen[];
  /** Whether text is decoded only after the last token. With stop texts, it is decoded for each token. */
  readonly waits: boolean;
  forced: number;
  ending: Ending | undefined;
  ended: boolean;
  cancel(): void;
}

/** Generates the choices of a request, as lists of events that are ready together. Throws RequestError. */
export async function* generateChoices(
  choices: readonly Choice[],
  { loop, tokenizer, signal, complete = false }: GenerateChoicesOptions,
): AsyncGenerator<readonly ChoiceEvent[], void, undefined> {
  let wake = () => {};
  let failure: RequestError | undefined;
  const growing: Growing[] = [];
  try {
    for (const [index, choice] of choices.entries()) {
      growing.push(
        addChoice(loop, { choice, index, tokenizer, complete }, {
          changed: () => wake(),
          failed: (reason) => {
            failure ??= unavailable(reason);
            wake();
          },
        }),
      );
    }
    signal.addEventListener("abort", () => wake(), { once: true });
    while (growing.some(({ ended }) => !ended)) {
      if (signal.aborted) throw signal.reason;
      if (failure) throw failure;
      const ready = growing.filter(hasNews);
      if (ready.length === 0) {
        await new Promise<void>((resolve) => wake = resolve);
      }
      const events: ChoiceEvent[] = [];
      for (const one of ready) events.push(...await newsOf(one));
      if (events.length > 0) yield events;
    }
  } finally {
    for (const { cancel } of growing) cancel();
  }
}

function hasNews({ chosen, ending, ended, waits }: Growing): boolean {
  return !ended && (chosen.length > 0 && !waits || ending !== undefined);
}

/** New events of a choice. */
async function newsOf(one: Growing): Promise<ChoiceEvent[]> {
  // Tokens chosen from here on belong to the next call.
  const { answer, index: choice, chosen, ending } = one;
  const forced = chosen.splice(0, one.forced);
  const free = chosen.splice(0);
  one.forced -= forced.length;
  const events: ChoiceEvent[] = [];
  if (forced.length > 0) {
    events.push({ choice, kind: "forced", tokens: forced });
  }
  const pieces = await answer.push(free);
  if (pieces.length > 0) events.push({ choice, kind: "pieces", pieces });
  if (ending === undefined && !answer.stopped) return events;
  one.ended = true;
  one.cancel();
  const end = await answer.end(ending ?? "stop text");
  events.push({ choice, kind: "end", ...end });
  return events;
}

function addChoice(
  loop: RemoteLoop,
  { choice, index, tokenizer, complete }: {
    readonly choice: Choice;
    readonly index: number;
    readonly tokenizer: Tokenizer;
    readonly complete: boolean;
  },
  { changed, failed }: {
    readonly changed: () => void;
    readonly failed: (failure: LoopFailure) => void;
  },
): Growing {
  const { prompt, options, stopTexts, shown } = choice;
  const one: Growing = {
    answer: new Answer(tokenizer, {
      stop: options.stop,
      stopTexts,
      shown,
    }),
    index,
    chosen: [],
    waits: complete && stopTexts.length === 0,
    forced: options.forced?.length ?? 0,
    ending: options.maxNewTokens === 0 ? "length" : undefined,
    ended: false,
    cancel: () => {},
  };
  if (one.ending) return one;
  if (loop.failure) throw unavailable(loop.failure);
  const sequence = loop.add(prompt, {
    ...options,
    waits: one.waits,
    onToken: (token, logprobs, record) => {
      one.chosen.push({ token, logprobs, ...record });
      if (!one.waits) changed();
    },
    onEnd: (ending) => {
      one.ending = ending;
      changed();
    },
    onFail: failed,
  });
  one.cancel = () => loop.cancel(sequence);
  return one;
}

function unavailable({ message }: LoopFailure): RequestError {
  return new RequestError(
    `Cannot go on: the server ends, since a step failed (${message}). Repeat the request when it has started again`,
    { kind: "unavailable" },
  );
}
