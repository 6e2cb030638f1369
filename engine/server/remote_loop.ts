/**
 * The loop of a server in another thread than its routes, so that connections do not delay steps. Each message
 * of the loop's thread contains the tokens streamed since the previous message, and the sequences that ended.
 */

import type { Decoder } from "../generation/decoder.ts";
import type { Grammars, GrammarSource, TokenGrammar } from "../text/grammar.ts";
import type { Logprobs } from "../generation/sampling.ts";
import type {
  BatchSequence,
  Ending,
  SequenceOptions,
  TokenRecord,
} from "../generation/sequence.ts";
import type { SpeculationStats } from "../generation/speculation/speculation.ts";
import { ExpertLoad, type LayerLoad } from "./expert_load.ts";
import { BatchLoop, type LoopOptions } from "./loop.ts";
import { LoopMetrics } from "./loop_metrics.ts";

/** A port of messages to another thread. */
export interface LoopPort {
  send(message: unknown): void;
  /** Calls an action with each message. */
  receive(action: (message: unknown) => void): void;
}

/** Options of a sequence without its callbacks. */
type SentOptions =
  & Omit<SequenceOptions, "onToken" | "onEnd" | "grammar">
  & {
    readonly grammar?: GrammarSource | undefined;
    /** Whether tokens are sent only when the sequence ends. Default: false, after each step. */
    readonly waits?: boolean;
  };

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
  /** Metrics of steps and tokens, for Prometheus. */
  readonly metrics: string;
  /** Load of the experts of each layer with a router. */
  readonly load: readonly LayerLoad[];
  /** Bytes sent between ranks, by kind, if they are counted. */
  readonly sent: { readonly [kind: string]: number };
}

/** Details of a token, if its sequence requested them, or if it is the first after a cached prefix. */
interface TokenDetails {
  /** Index of the token in its message, or in its sequence if that waits. */
  readonly at: number;
  readonly logprobs: Logprobs | undefined;
  readonly record: TokenRecord;
}

const NO_DETAILS = { logprobs: undefined, record: {} };

/** The end of a sequence. */
interface SentEnding {
  readonly id: number;
  readonly ending: Ending;
  /** All tokens of a sequence that waits, and their details. */
  readonly tokens?: Int32Array;
  readonly details: readonly TokenDetails[];
}

/** A message of the loop. */
type Report =
  | {
    readonly kind: "tokens";
    /** For each new token, the id of its sequence and the token. One array is copied faster than a list of objects. */
    readonly tokens: Float64Array;
    readonly details: readonly TokenDetails[];
    readonly endings: readonly SentEnding[];
  }
  | { readonly kind: "state"; readonly state: LoopState }
  | {
    readonly kind: "failed";
    /** Undefined if the loop ends. */
    readonly id?: number;
    readonly message: string;
  };

/** A sequence of the loop. Undefined while its grammar is compiled. */
interface Running {
  sequence?: BatchSequence;
  grammar?: TokenGrammar | undefined;
  /** When it was added, or the time of its last token, in milliseconds. */
  last: number;
  first: boolean;
}

/** Creates a loop for the routes at the other end of a port. */
export function createLoop(
  decoder: Decoder,
  port: LoopPort,
  { openGrammars, streamInterval, ...options }:
    & Pick<LoopOptions, "now" | "idle" | "speculation">
    & {
      /** Grammars of the checkpoint. */
      readonly openGrammars: () => Promise<Grammars>;
      /** Bytes sent between ranks, by kind. */
      readonly sentBytes?: () => { readonly [kind: string]: number };
      /** Milliseconds during which streamed tokens are collected. Steps with prompts and ends of sequences send them at once. */
      readonly streamInterval: number;
    },
): BatchLoop {
  const growing = new Map<number, Running>();
  let tokens: number[] = [];
  let details: TokenDetails[] = [];
  let endings: SentEnding[] = [];
  /** The sequence of each new token. */
  let grown: Running[] = [];
  const send = (report: Report) => port.send(report);
  let reported = options.now();
  /** Sends the collected tokens and endings, if there are any. */
  const report = () => {
    if (tokens.length + endings.length === 0) return;
    reported = options.now();
    send({
      kind: "tokens",
      tokens: Float64Array.from(tokens),
      details,
      endings,
    });
    [tokens, details, endings] = [[], [], []];
  };
  const load = new ExpertLoad();
  const metrics = new LoopMetrics();
  const failed = (error: unknown, id?: number) => {
    report();
    send({
      kind: "failed",
      message: error instanceof Error ? error.message : String(error),
      ...id === undefined ? {} : { id },
    });
  };
  const sendState = async () => {
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
        metrics: await metrics.text(),
        load: load.layers,
        sent: options.sentBytes?.() ?? {},
      },
    });
  };
  const loop = new BatchLoop(decoder, {
    ...options,
    onStep: (step, { at, ms }) => {
      for (const one of step.experts ?? []) load.add(one);
      metrics.step(step, ms);
      const now = options.now();
      for (const one of grown) {
        metrics.token(at - one.last, { first: one.first });
        one.last = at;
        one.first = false;
      }
      grown = [];
      // Without prompts, the next step probably takes as long as this one.
      const collects = step.prompted + endings.length === 0 &&
        now + ms < reported + streamInterval;
      if (!collects) report();
    },
    onFail: (error) => failed(error),
  });
  const end = (id: number) => {
    const one = growing.get(id);
    growing.delete(id);
    one?.grammar?.close();
    return one;
  };
  const add = async (
    { id, prompt, options: { grammar: source, waits = false, ...others } }:
      & Request
      & { kind: "add" },
  ) => {
    const one: Running = { last: options.now(), first: true };
    growing.set(id, one);
    one.grammar = source &&
      await (await openGrammars()).start(source, (error) => failed(error, id));
    // It may be cancelled meanwhile.
    if (!growing.has(id)) return one.grammar?.close();
    const own: TokenDetails[] = [];
    const sequence = one.sequence = loop.add(prompt, {
      ...others,
      grammar: one.grammar,
      onToken: (token, logprobs, record) => {
        grown.push(one);
        if (logprobs || record.hash || record.experts || record.cached) {
          const at = waits ? sequence.tokens.length - 1 : tokens.length / 2;
          (waits ? own : details).push({ at, logprobs, record });
        }
        if (!waits) tokens.push(id, token);
      },
      onEnd: (ending) => {
        end(id);
        endings.push({
          id,
          ending,
          details: own,
          ...waits ? { tokens: Int32Array.from(sequence.tokens) } : {},
        });
      },
    });
  };
  port.receive((message) => {
    const request = message as Request;
    switch (request.kind) {
      case "add":
        report();
        return void add(request).catch((error) => failed(error, request.id));
      case "cancel": {
        const sequence = end(request.id)?.sequence;
        return sequence && loop.cancel(sequence);
      }
      case "look":
        return loop.look(() => void sendState());
      default:
        request satisfies never;
    }
  });
  return loop;
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

type Growing = Pick<RemoteSequence, "onToken" | "onEnd" | "onFail">;

/** A loop in another thread. */
export class RemoteLoop {
  readonly #port: LoopPort;
  readonly #growing = new Map<number, Growing>();
  #count = 0;
  readonly #looking: ((state: LoopState | undefined) => void)[] = [];
  #failure: LoopFailure | undefined;
  /** Maximum number of sequences in the caches. */
  readonly capacity: number;

  constructor(port: LoopPort, { capacity }: { readonly capacity: number }) {
    this.#port = port;
    this.capacity = capacity;
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
    sequence: RemoteSequence,
  ): number {
    const id = this.#count++;
    const { onToken: _, onEnd: _end, onFail: _fail, ...options } = sequence;
    this.#growing.set(id, sequence);
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
      case "tokens":
        return this.#grow(report);
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

  #grow({ tokens, details, endings }: Report & { kind: "tokens" }): void {
    const detailOf = inOrder(details);
    for (let at = 0; 2 * at < tokens.length; at++) {
      const { logprobs, record } = detailOf(at);
      const one = this.#growing.get(tokens[2 * at]!);
      void one?.onToken?.(tokens[2 * at + 1]!, logprobs, record);
    }
    for (const { id, ending, tokens = new Int32Array(), details } of endings) {
      const one = this.#growing.get(id);
      this.#growing.delete(id);
      const detailOf = inOrder(details);
      for (const [at, token] of tokens.entries()) {
        const { logprobs, record } = detailOf(at);
        void one?.onToken?.(token, logprobs, record);
      }
      one?.onEnd?.(ending);
    }
  }
}

/** Returns the details of tokens at increasing indices. */
function inOrder(
  details: readonly TokenDetails[],
): (at: number) => Pick<TokenDetails, "logprobs" | "record"> {
  let next = 0;
  return (at) => details[next]?.at === at ? details[next++]! : NO_DETAILS;
}
