/**
 * Messages between the routes of a server and its loop, which is in another thread so that connections do not delay
 * steps. Each message of the loop contains the tokens streamed since the previous one, and the sequences that ended.
 */

import type { GrammarSource } from "../text/grammar.ts";
import type { Logprobs } from "../generation/sampling.ts";
import type {
  Ending,
  SequenceOptions,
  TokenRecord,
} from "../generation/sequence.ts";
import type { SpeculationStats } from "../generation/speculation/speculation.ts";
import type { LayerLoad } from "./expert_load.ts";

/** A port of messages to another thread. */
export interface LoopPort {
  send(message: unknown): void;
  /** Calls an action with each message. */
  receive(action: (message: unknown) => void): void;
}

/** Options of a sequence without its callbacks. */
export type SentOptions =
  & Omit<SequenceOptions, "onToken" | "onEnd" | "grammar">
  & {
    readonly grammar?: GrammarSource | undefined;
    /** Whether tokens are sent only when the sequence ends. Default: false, after each step. */
    readonly waits?: boolean;
  };

/** A message of the routes. */
export type Request =
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
export interface TokenDetails {
  /** Index of the token in its message, or in its sequence if that waits. */
  readonly at: number;
  readonly logprobs: Logprobs | undefined;
  readonly record: TokenRecord;
}

/** The end of a sequence. */
export interface SentEnding {
  readonly id: number;
  readonly ending: Ending;
  /** All tokens of a sequence that waits, and their details. */
  readonly tokens?: Int32Array;
  readonly details: readonly TokenDetails[];
}

/** A message of the loop. */
export type Report =
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
