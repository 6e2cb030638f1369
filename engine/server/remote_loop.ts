/**
 * The loop of a server in another thread than its routes, so that connections do not delay steps. After each step, the
 * thread of the loop sends one message with all tokens.
 */

import type {
  BatchSequence,
  BatchStep,
  Ending,
  SequenceOptions,
  TokenRecord,
} from "../batch.ts";
import type { Decoder } from "../decoder.ts";
import type { Grammars, GrammarSource, TokenGrammar } from "../grammar.ts";
import type { Logprobs } from "../sampling.ts";
import type { SpeculationStats } from "../speculation/speculation.ts";
import { ExpertLoad, type LayerLoad } from "./expert_load.ts";
import { BatchLoop, type LoopOptions } from "./loop.ts";

/** A port of messages to another thread. */
export interface LoopPort {
  send(message: unknown): void;
  /** Calls an action with each message. */
  receive(action: (message: unknown) => void): void;
}

/** Options of a sequence without its callbacks. */
type SentOptions =
  & Omit<SequenceOptions, "onToken" | "onEnd" | "grammar">
  & { readonly grammar?: GrammarSource | undefined };

/** A message of the routes. */
type Request =
  | {
    readonly kind: "add";
    readonly id: number;
    readonly prompt: readonly number[];
    readonly options: SentOptions;
  }
  | { readonly kind: "cancel"; readonly id: number }
  | { readonly kind: "look" };

/** Sequences and pages in use. */
export interface LoopState {
  /** Sequences in the batch. */
  readonly running: number;
  /** Sequences in the queue. */
  readonly waiting: number;
  /** Pages in use, by group. */
  readonly pages: readonly number[];
  readonly speculation?: SpeculationStats;
  /** Load of the experts of each layer with a router. */
  readonly load: readonly LayerLoad[];
  /** Bytes sent between ranks, by kind, if they are counted. */
  readonly sent: { readonly [kind: string]: number };
}

/** A step and its duration in milliseconds. */
export interface TimedStep extends BatchStep {
  readonly ms: number;
}

/** Details of a token, if its sequence requested them. */
interface TokenDetails {
  /** Index of the token in its step. */
  readonly at: number;
  readonly logprobs: Logprobs | undefined;
  readonly record: TokenRecord;
}

/** The record of a token without details. */
const NO_RECORD: TokenRecord = {};

/** A message of the loop. */
type Report =
  | {
    readonly kind: "step";
    readonly step: TimedStep;
    /** For each new token, the id of its sequence and the token. One array is copied faster than a list of objects. */
    readonly tokens: Float64Array;
    readonly details: readonly TokenDetails[];
    readonly endings: readonly (readonly [id: number, ending: Ending])[];
  }
  | { readonly kind: "state"; readonly state: LoopState }
  | {
    readonly kind: "failed";
    /** Undefined if the loop ends. */
    readonly id?: number;
    readonly message: string;
  };

/** A sequence of the loop. Empty while its grammar is compiled. */
interface Running {
  readonly sequence?: BatchSequence;
  readonly grammar?: TokenGrammar | undefined;
}

/** Creates a loop for the routes at the other end of a port. */
export function createLoop(
  decoder: Decoder,
  port: LoopPort,
  { openGrammars, ...options }:
    & Pick<LoopOptions, "now" | "idle" | "speculation">
    & {
      /** Grammars of the checkpoint. */
      readonly openGrammars: () => Promise<Grammars>;
      /** Bytes sent between ranks, by kind. */
      readonly sentBytes?: () => { readonly [kind: string]: number };
    },
): BatchLoop {
  const growing = new Map<number, Running>();
  let tokens: number[] = [];
  let details: TokenDetails[] = [];
  const load = new ExpertLoad();
  let endings: [number, Ending][] = [];
  const send = (report: Report) => port.send(report);
  const failed = (error: unknown, id?: number) =>
    send({
      kind: "failed",
      message: error instanceof Error ? error.message : String(error),
      ...id === undefined ? {} : { id },
    });
  const sendState = () => {
    const { running, waiting } = loop;
    const pages = decoder.pages?.used ?? [];
    const stats = options.speculation?.stats;
    send({
      kind: "state",
      state: {
        running,
        waiting,
        pages,
        ...stats ? { speculation: stats } : {},
        load: load.layers,
        sent: options.sentBytes?.() ?? {},
      },
    });
  };
  const loop = new BatchLoop(decoder, {
    ...options,
    onStep: ({ experts = [], ...step }, ms) => {
      for (const one of experts) load.add(one);
      send({
        kind: "step",
        step: { ...step, ms },
        tokens: Float64Array.from(tokens),
        details,
        endings,
      });
      [tokens, details, endings] = [[], [], []];
    },
    onFail: (error) => failed(error),
  });
  const end = (id: number) => {
    const one = growing.get(id);
    growing.delete(id);
    one?.grammar?.close();
    return one;
  };
  const add = async ({ id, prompt, options }: Request & { kind: "add" }) => {
    const { grammar: source, ...others } = options;
    growing.set(id, {});
    const grammar = source &&
      await (await openGrammars()).start(source, (error) => failed(error, id));
    // It may be cancelled meanwhile.
    if (!growing.has(id)) return grammar?.close();
    const sequence = loop.add(prompt, {
      ...others,
      grammar,
      onToken: (token, logprobs, record) => {
        if (logprobs || record.hash || record.experts) {
          details.push({ at: tokens.length / 2, logprobs, record });
        }
        tokens.push(id, token);
      },
      onEnd: (ending) => {
        end(id);
        endings.push([id, ending]);
      },
    });
    growing.set(id, { sequence, grammar });
  };
  port.receive((message) => {
    const request = message as Request;
    switch (request.kind) {
      case "add":
        return void add(request).catch((error) => failed(error, request.id));
      case "cancel": {
        const sequence = end(request.id)?.sequence;
        return sequence && loop.cancel(sequence);
      }
      case "look":
        return loop.look(sendState);
      default:
        request satisfies never;
    }
  });
  return loop;
}

/** Callbacks of routes. */
export interface RemoteLoopOptions {
  /** Maximum number of sequences in the caches. */
  readonly capacity: number;
  /** Called after each step. */
  readonly onStep?: (step: TimedStep) => void;
  /** Called with each token: milliseconds since the sequence was added, or since the previous token. */
  readonly onToken?: (ms: number, of: { readonly first: boolean }) => void;
  /** A clock in milliseconds. */
  readonly now: () => number;
}

/** A sequence with a callback for a failure of the loop. */
export interface RemoteSequence
  extends SentOptions, Pick<SequenceOptions, "onToken" | "onEnd"> {
  /** Called if the loop ends before the sequence. */
  readonly onFail: (failure: LoopFailure) => void;
}

/** Why a loop ended. */
export interface LoopFailure {
  readonly message: string;
}

interface Growing extends Pick<RemoteSequence, "onToken" | "onEnd" | "onFail"> {
  last: number;
  first: boolean;
}

/** A loop in another thread. */
export class RemoteLoop {
  readonly #port: LoopPort;
  readonly #options: RemoteLoopOptions;
  readonly #growing = new Map<number, Growing>();
  #count = 0;
  readonly #looking: ((state: LoopState | undefined) => void)[] = [];
  #failure: LoopFailure | undefined;
  /** Maximum number of sequences in the caches. */
  readonly capacity: number;

  constructor(port: LoopPort, options: RemoteLoopOptions) {
    this.#port = port;
    this.#options = options;
    this.capacity = options.capacity;
    port.receive((report) => this.#receive(report as Report));
  }

  /** The error that ended the loop. */
  get failure(): LoopFailure | undefined {
    return this.#failure;
  }

  /** Number of sequences in the caches and in the queue. */
  get sequences(): number {
    return this.#growing.size;
  }

  /** State of the loop after all earlier calls. Undefined if the loop has failed. */
  async state(): Promise<LoopState | undefined> {
    if (this.#failure) return undefined;
    return await new Promise((resolve) => {
      this.#looking.push(resolve);
      this.#send({ kind: "look" });
    });
  }

  /** Adds a sequence and returns its id. The prompt must be checked. */
  add(
    prompt: readonly number[],
    { onToken, onEnd, onFail, ...options }: RemoteSequence,
  ): number {
    const id = this.#count++;
    this.#growing.set(id, {
      ...onToken ? { onToken } : {},
      ...onEnd ? { onEnd } : {},
      onFail,
      last: this.#options.now(),
      first: true,
    });
    this.#send({ kind: "add", id, prompt, options });
    return id;
  }

  /** Ends a running sequence before the next step. */
  cancel(id: number): void {
    if (this.#growing.delete(id)) this.#send({ kind: "cancel", id });
  }

  /** Ends all sequences with an error. */
  fail(message: string): void {
    this.#failure ??= { message };
    for (const { onFail } of this.#growing.values()) onFail(this.#failure);
    this.#growing.clear();
    for (const resolve of this.#looking.splice(0)) resolve(undefined);
  }

  #send(request: Request): void {
    this.#port.send(request);
  }

  #receive(report: Report): void {
    switch (report.kind) {
      case "step":
        return this.#step(report);
      case "state":
        return this.#looking.shift()?.(report.state);
      case "failed":
        if (report.id === undefined) return this.fail(report.message);
        this.#growing.get(report.id)?.onFail(report);
        return this.cancel(report.id);
      default:
        report satisfies never;
    }
  }

  #step({ step, tokens, details, endings }: Report & { kind: "step" }): void {
    this.#options.onStep?.(step);
    const now = this.#options.now();
    let next = 0;
    for (let at = 0; 2 * at < tokens.length; at++) {
      const detailed = details[next]?.at === at ? details[next++] : undefined;
      const one = this.#growing.get(tokens[2 * at]!);
      if (!one) continue;
      this.#time(one, now);
      const { logprobs, record = NO_RECORD } = detailed ?? {};
      void one.onToken?.(tokens[2 * at + 1]!, logprobs, record);
    }
    for (const [id, ending] of endings) {
      const one = this.#growing.get(id);
      this.#growing.delete(id);
      one?.onEnd?.(ending);
    }
  }

  #time(one: Growing, now: number): void {
    const { last, first } = one;
    one.last = now;
    one.first = false;
    this.#options.onToken?.(now - last, { first });
  }
}
