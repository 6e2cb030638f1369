/** A training, declared: a model, what to make smaller, by which rule, and on what. The engine executes it. */

import { ModelError } from "../spec/errors.ts";
import { isModel, type Model } from "./dsl/model.ts";
import type { AdamW, Optimizer, Sgd } from "./graph/optimizers.ts";
import type { TrainedDType } from "./graph/stored.ts";
import type { Placement } from "./sharding/placement.ts";

/**
 * Adam with decoupled weight decay.
 *
 * @example
 * ```ts
 * const optimizer = adamw({ betas: [0.9, 0.95], weightDecay: 0.1 });
 * console.assert(optimizer.kind === "adamW");
 * ```
 */
export function adamw(options: Omit<AdamW, "kind"> = {}): AdamW {
  return { kind: "adamW", ...options };
}

/**
 * Gradient descent with momentum.
 *
 * @example
 * ```ts
 * const optimizer = sgd({ momentum: 0.9 });
 * console.assert(optimizer.kind === "sgd");
 * ```
 */
export function sgd(options: Omit<Sgd, "kind"> = {}): Sgd {
  return { kind: "sgd", ...options };
}

/** The learning rate over the steps: up in a line, then down along a cosine. */
export interface Schedule {
  /** The highest rate. */
  readonly rate: number;
  /** Steps until it is reached; default 0. */
  readonly warmup?: number;
  /** The step from which on the rate is lowest; absent: it stays the highest. */
  readonly decay?: number;
  /** The lowest rate after that, as a share of the highest; default 0.1. */
  readonly floor?: number;
}

/**
 * The learning rate of a step, counted from 1.
 *
 * @example
 * ```ts
 * const schedule = { rate: 1, warmup: 4, decay: 10, floor: 0 };
 * console.assert(rateAt(schedule, 2) === 0.5);
 * console.assert(rateAt(schedule, 10) === 0);
 * ```
 */
export function rateAt(
  { rate, warmup = 0, decay, floor = 0.1 }: Schedule,
  step: number,
): number {
  if (step <= warmup) return rate * step / warmup;
  if (decay === undefined) return rate;
  const past = Math.min(1, (step - warmup) / Math.max(1, decay - warmup));
  const share = (1 + Math.cos(Math.PI * past)) / 2;
  return rate * (floor + (1 - floor) * share);
}

/** Tensors that a model reads in one step, whole and row-major, by the names of its inputs. */
export interface Batch {
  readonly [input: string]: {
    readonly dtype: "f32" | "i32" | "u32";
    readonly shape: readonly number[];
    readonly data: Float32Array | Int32Array | Uint32Array;
  };
}

/** The batch of a step, counted from 1. Same step, same batch: a training that was stopped goes on with the next one. */
export type Batches = (step: number) => Batch;

/** Options of `train`. `Name` are the names of what the model returns. */
export interface TrainingOptions<Name extends string = string> {
  /** The output to make smaller, a number. Default: `loss`. */
  readonly loss?: NoInfer<Name>;
  readonly optimizer: Optimizer;
  readonly schedule: Schedule;
  /** Gradients are scaled down together where their norm is larger; default: not. */
  readonly clipNorm?: number;
  /** Batches of a step, whose gradients are added up, each by its share of all labels that count; default: 1. */
  readonly accumulate?: number;
  /** By how much the selection biases of routers follow the load of experts in each step; default: they stay. */
  readonly biasUpdate?: number;
  /** What all parameters are stored as, with f32 masters beside those in 16 bits. Default: f32. */
  readonly dtype?: TrainedDType;
  readonly data: Batches;
  /** Batches that are not trained on, by which the loss is measured; as many as `validationBatches`. */
  readonly validation?: Batches;
  /** Default: 1. */
  readonly validationBatches?: number;
  /** Sizes of mesh axes, in order. Default: one rank. */
  readonly mesh?: { readonly [axis: string]: number };
  /** Tensor axes over mesh axes. Default: experts over `ep`, tokens over all. */
  readonly place?: Placement;
  /** Same seed, same initial weights; default 0. */
  readonly seed?: number;
  /** Standard deviation of matrices before the first step; default 0.02. */
  readonly deviation?: number;
}

/** A training as it was declared. */
export interface Training extends TrainingOptions {
  readonly model: Model;
}

const TRAININGS = new WeakSet<object>();

/** Whether a value was made by `train`. */
export function isTraining(value: unknown): value is Training {
  return typeof value === "object" && value !== null && TRAININGS.has(value);
}

/**
 * Declare the training of a model. Nothing is computed: `switchyard train FILE.ts` executes what the file exports, as
 * does `runTraining` of the engine.
 *
 * Throws ModelError where the first argument is no model.
 *
 * @example
 * ```ts
 * const line = model({ row: 4, input: 2 }, (m) => {
 *   const x = m.input("x", "row input");
 *   const wanted = m.input("wanted", "row");
 *   const miss = sub(dot(x, m.param("w", "input"), "input"), wanted);
 *   return { loss: mean(mul(miss, miss), "row") };
 * });
 * export const training = train(line, {
 *   optimizer: sgd(),
 *   schedule: { rate: 0.1 },
 *   data: (step) => ({
 *     x: { dtype: "f32", shape: [4, 2], data: new Float32Array(8).fill(step) },
 *     wanted: { dtype: "f32", shape: [4], data: new Float32Array(4) },
 *   }),
 * });
 * ```
 */
export function train<Name extends string>(
  model: Model<Name>,
  options: TrainingOptions<Name>,
): Training {
  if (!isModel(model)) {
    throw new ModelError(
      "Cannot train what is no model. Give what 'model(…)' returns",
    );
  }
  const training: Training = { ...options, model };
  TRAININGS.add(training);
  return training;
}
