/** The summary of a plan: whether it fits, what moves, what it computes. One screen at any size, and a JSON document. */

import type { Integer, Natural, NonNegative } from "./values.ts";
import type { Problem } from "./problems.ts";

/** The model, before it is anywhere. */
export interface ModelSummary {
  readonly parameters: Natural;
  /** Those that one token needs: of the experts it chooses, and one row of the embedding. Absent for a saved plan. */
  readonly activeParameters?: Natural;
  /** Bytes of weights in files. */
  readonly bytes: Natural;
  /** The same by encoding, largest first. */
  readonly stored: { readonly [encoding: string]: Natural };
}

/** Bytes that a rank holds. */
export interface RankBytes {
  readonly weights: Natural;
  readonly state: Natural;
  /** All else: inputs, outputs, tables, and what steps need. */
  readonly scratch: Natural;
  /** What exchanges through the host take besides. */
  readonly staging: Natural;
  readonly total: Natural;
}

/** Ranks that hold the same. */
export interface RankClass {
  readonly count: Natural;
  /** The lowest of them. */
  readonly first: Natural;
  readonly bytes: RankBytes;
  /** Bytes of its share of a device; absent where no machine says. */
  readonly limit?: Natural;
  /** `limit` less the total; negative: it does not fit. */
  readonly headroom?: Integer;
  /** Experts of a layer that it holds: a number for each size that layers have. */
  readonly experts: readonly Natural[];
}

/** What a layer sends for each token. */
export interface ExchangeSummary {
  readonly name: "dispatch" | "combine";
  /** Bytes to other ranks, if experts are chosen evenly. */
  readonly bytesPerToken: Natural;
  /** Mesh axes. */
  readonly over: readonly string[];
}

/** Layers that are equal. */
export interface LayerClass {
  readonly count: Natural;
  /** `vocabulary`: embedding, last norm and output. */
  readonly kind: "experts" | "dense" | "vocabulary";
  /** Numbers of the layers, as ranges: `3-60`. */
  readonly layers: string;
  /** Twice the parameters that a token is multiplied by; attention to earlier tokens comes on top. */
  readonly flopsPerToken: Natural;
  readonly exchanges: readonly ExchangeSummary[];
  /** Predicted of one of them, where a machine is given. */
  readonly seconds?: { readonly [P in Phase]?: LayerSeconds };
}

/**
 * Steps that are predicted: of as many tokens as there is room for; of one token of each sequence, after as many as there
 * is room for; of training. `step`: of a model that is no decoder.
 */
export type Phase = "prefill" | "decode" | "train" | "step";

/** What a device does, or waits for. */
export type Bottleneck =
  | "launch"
  | "arithmetic"
  | "memory"
  | "exchange"
  | "waiting"
  | "run";

/** What one layer takes in a step. */
export interface LayerSeconds {
  readonly total: NonNegative;
  /** Of it, with nothing else going on. */
  readonly exchange: NonNegative;
  readonly bound: Bottleneck;
}

/** A predicted step. */
export interface PredictedStep {
  /** Over all ranks. */
  readonly tokens: Natural;
  readonly sequences: Natural;
  /** Tokens of each sequence that came in earlier steps. */
  readonly past: Natural;
  readonly seconds: NonNegative;
  readonly tokensPerSecond: NonNegative;
  /** What most of the time goes to. */
  readonly bound: Bottleneck;
  /** Seconds by what they are for; `waiting`: for ranks that have more to do. */
  readonly parts: { readonly [B in Bottleneck]: NonNegative };
  /** False: a lower bound, as some work depends on data of which nothing is assumed. */
  readonly exact: boolean;
}

/** The document that `plan --json` prints. */
export interface PlanSummary {
  readonly model: ModelSummary;
  readonly mesh: { readonly [axis: string]: Natural };
  /** The machine that it is held against. */
  readonly target?: string;
  /** How much there is room for: tokens of a step, sequences, positions. */
  readonly bounds: { readonly [axis: string]: Natural };
  readonly ranks: readonly RankClass[];
  readonly layers: readonly LayerClass[];
  /** What does not fit. */
  readonly problems: readonly Problem[];
  /** What was assumed, and what should be known besides. */
  readonly notes: readonly string[];
  /** Predicted, where a machine is given that has the ranks. */
  readonly predicted?: { readonly [P in Phase]?: PredictedStep };
}

/** A step of the plan on a rank, in microseconds since the program began. */
export type TimedStep = readonly [
  step: number,
  start: number,
  duration: number,
];

/** A predicted step of a program, over time. */
export interface PredictedTimeline {
  readonly phase: Phase;
  readonly tokens: number;
  readonly sequences: number;
  readonly microseconds: number;
  /** Of each class of ranks that are equal, what they do. */
  readonly lanes: readonly {
    /** The first of them, and how many there are. */
    readonly rank: number;
    readonly count: number;
    readonly steps: readonly TimedStep[];
    /** When they wait for ranks that have more to do; the rest of the time is the host's. */
    readonly waits: readonly TimedStep[];
  }[];
}

/**
 * Cost of a step on rank 0. `bytes`: what a launch reads and writes, or an exchange sends to other ranks. `flops`: two for
 * each multiply-add. `bound`: microseconds that its roofline allows, the larger of bytes over bandwidth and FLOPs over peak
 * FLOP/s; absent where no machine is given.
 */
export type StepCost = readonly [
  step: number,
  bytes: number,
  flops: number,
  bound?: number,
];

/** Costs of the steps of a program. */
export interface PhaseCosts {
  readonly phase: Phase;
  /** Over all ranks. */
  readonly tokens: number;
  readonly steps: readonly StepCost[];
}
