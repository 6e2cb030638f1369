/** The loop of a server, for routes in another thread. */

import type { SequenceOptions } from "../generation/sequence.ts";
import type {
  LoopPort,
  LoopState,
  Report,
  Request,
  SentOptions,
  TokenDetails,
} from "./loop_messages.ts";

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

const NO_DETAILS = { logprobs: undefined, record: {} };

/** Returns the details of tokens at increasing indices. */
function inOrder(
  details: readonly TokenDetails[],
): (at: number) => Pick<TokenDetails, "logprobs" | "record"> {
  let next = 0;
  return (at) => details[next]?.at === at ? details[next++]! : NO_DETAILS;
}
