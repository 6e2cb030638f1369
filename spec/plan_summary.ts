/** The summary of a plan: memory fit, traffic and work. It fits on one screen at any size, and is a JSON document. */

import type { Integer, Natural, NonNegative } from "./values.ts";
import type { Problem } from "./problems.ts";

/** The model, independent of a mesh. */
export interface ModelSummary {
  readonly parameters: Natural;
  /** Parameters active for one token: those of its experts, and one row of the embedding. Absent for a saved plan. */
  readonly activeParameters?: Natural;
  /** Bytes of weights in files. */
  readonly bytes: Natural;
  /** The same by encoding, largest first. */
  readonly stored: { readonly [encoding: string]: Natural };
}

/** Bytes on a rank. */
export interface RankBytes {
  readonly weights: Natural;
  readonly state: Natural;
  /** All else: inputs, outputs, tables, and scratch memory. */
  readonly scratch: Natural;
  /** Additional memory of exchanges through the host. */
  readonly staging: Natural;
  readonly total: Natural;
}

/** Ranks with equal data. */
export interface RankClass {
  readonly count: Natural;
  /** The lowest of them. */
  readonly first: Natural;
  readonly bytes: RankBytes;
  /** Bytes of its share of a device. Absent without a machine. */
  readonly limit?: Natural;
  /** `limit` minus the total; negative if it does not fit. */
  readonly headroom?: Integer;
  /** Experts per layer on the rank: a number for each layer size. */
  readonly experts: readonly Natural[];
  /** Memory of streamed experts, whose other weights are on disk. Absent: all are in memory. */
  readonly expertMemory?: ExpertMemory;
}

/** Bytes of a layer per token. */
export interface ExchangeSummary {
  readonly name: "dispatch" | "combine";
  /** Bytes to other ranks, for evenly chosen experts. */
  readonly bytesPerToken: Natural;
  /** Mesh axes. */
  readonly over: readonly string[];
}

/** Equal layers. */
export interface LayerClass {
  readonly count: Natural;
  /** `vocabulary`: embedding, last norm and output. */
  readonly kind: "experts" | "dense" | "vocabulary";
  /** Numbers of the layers, as ranges: `3-60`. */
  readonly layers: string;
  /** Twice the parameters that a token is multiplied by, without attention to earlier tokens. */
  readonly flopsPerToken: Natural;
  readonly exchanges: readonly ExchangeSummary[];
  /** Predicted for one of them, if a machine is given. */
  readonly seconds?: { readonly [P in Phase]?: LayerSeconds };
}

/**
 * Predicted steps: prefill of the maximum number of tokens; decode of one token per sequence at maximum context; a
 * training step. `step`: of a model that is not a decoder.
 */
export type Phase = "prefill" | "decode" | "train" | "step";

/** Activity of a device, or its reason for waiting. */
export type Bottleneck =
  | "launch"
  | "arithmetic"
  | "memory"
  | "disk"
  | "exchange"
  | "waiting"
  | "run";

/** Time of one layer in a step. */
export interface LayerSeconds {
  readonly total: NonNegative;
  /** Part of it in exchanges without overlap. */
  readonly exchange: NonNegative;
  readonly bound: Bottleneck;
}

/** A predicted step. */
export interface PredictedStep {
  /** Over all ranks. */
  readonly tokens: Natural;
  readonly sequences: Natural;
  /** Earlier tokens of each sequence. */
  readonly past: Natural;
  readonly seconds: NonNegative;
  /** Steps that pipeline stages execute concurrently. Absent: 1. */
  readonly inFlight?: Natural;
  /** Of all steps in flight. */
  readonly tokensPerSecond: NonNegative;
  /** Cause of most of the time. */
  readonly bound: Bottleneck;
  /** Seconds by cause; `waiting`: for ranks with more work. */
  readonly parts: { readonly [B in Bottleneck]: NonNegative };
  /** Seconds in which a device reads the weights and caches of the step at full bandwidth: no kernels are faster. */
  readonly memoryFloor: NonNegative;
  /** False: a lower bound, because some work depends on unknown data. */
  readonly exact: boolean;
  /** Reads of streamed experts by a rank. Absent: all experts are in memory. */
  readonly streamed?: StreamedReads;
}

/** Reads of streamed experts in a step. */
export interface StreamedReads {
  readonly bytes: NonNegative;
  /** Share of the used experts that are in memory. */
  readonly hitRate: NonNegative;
}

/** Memory of streamed experts. */
export interface ExpertMemory {
  /** Bytes of the experts in memory, and of all experts of a rank. */
  readonly bytes: Natural;
  readonly all: Natural;
}

/** A plan with experts on disk, for a machine that has no memory for all of them. */
export interface StreamedPlan {
  /** Name of its device. */
  readonly device: string;
  readonly ranks: readonly RankClass[];
  readonly predicted: { readonly [P in Phase]?: PredictedStep };
}

/** The document of `plan --json`. */
export interface PlanSummary {
  readonly model: ModelSummary;
  readonly mesh: { readonly [axis: string]: Natural };
  /** The machine of the check. */
  readonly target?: string;
  /** Bounds: tokens per step, sequences, positions. */
  readonly bounds: { readonly [axis: string]: Natural };
  readonly ranks: readonly RankClass[];
  readonly layers: readonly LayerClass[];
  /** Problems with fixes. */
  readonly problems: readonly Problem[];
  /** A plan that would fit the machine, if this one does not fit. */
  readonly streamed?: StreamedPlan;
  /** For a training with policy gradients: bytes of weights on the ranks of its rollouts. */
  readonly rollouts?: RolloutBytes;
  /** Assumptions and other notes. */
  readonly notes: readonly string[];
  /** Predicted steps, if the machine has enough devices for the ranks. */
  readonly predicted?: { readonly [P in Phase]?: PredictedStep };
}

/** Bytes of the weights of rollouts, over all ranks of their mesh. */
export interface RolloutBytes {
  readonly mesh: { readonly [axis: string]: Natural };
  /** In the memory of the training. */
  readonly shared: Natural;
  /** Sent after each update. */
  readonly moved: Natural;
  /** Constant weights that are copied once. */
  readonly copied: Natural;
}

/** A step of the plan on a rank, in microseconds since the start of the program. */
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
  /** Steps that pipeline stages execute concurrently, and the throughput of all of them. Absent: one. */
  readonly inFlight?: number;
  readonly tokensPerSecond?: number;
  readonly microseconds: number;
  /** The activity of each class of equal ranks. */
  readonly lanes: readonly {
    /** The first rank, and the number of ranks. */
    readonly rank: number;
    readonly count: number;
    readonly steps: readonly TimedStep[];
    /** Waits for ranks with more work; the remaining time is the host's. */
    readonly waits: readonly TimedStep[];
  }[];
}

/**
 * Cost of a step on rank 0. `bytes`: reads and writes of a launch, or bytes sent to other ranks by an exchange.
 * `flops`: two per multiply-add. `bound`: microseconds of the roofline, the maximum of bytes over bandwidth and FLOPs
 * over peak FLOP/s; absent without a machine.
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
