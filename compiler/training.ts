/** Declaration of a training: a model, its loss, an optimizer and data. The engine executes it. */

import { ModelError } from "../spec/errors.ts";
import { checkOptions } from "../spec/options.ts";
import { isModel, type Model } from "./dsl/model.ts";
import type { AdamW, Optimizer, Sgd } from "./graph/optimizers.ts";
import type { TrainedDType } from "./graph/stored.ts";
import {
  ADAMW_OPTIONS,
  SGD_OPTIONS,
  TRAINING_OPTIONS,
} from "./option_names.ts";
import type { Placement } from "./sharding/placement.ts";

/**
 * Adam with decoupled weight decay. Throws DataError for an unknown option.
 *
 * @example
 * ```ts
 * const optimizer = adamw({ betas: [0.9, 0.95], weightDecay: 0.1 });
 * console.assert(optimizer.kind === "adamW");
 * ```
 */
export function adamw(options: Omit<AdamW, "kind"> = {}): AdamW {
  checkOptions("train with AdamW", options, ADAMW_OPTIONS);
  return { kind: "adamW", ...options };
}

/**
 * SGD with momentum. Throws DataError for an unknown option.
 *
 * @example
 * ```ts
 * const optimizer = sgd({ momentum: 0.9 });
 * console.assert(optimizer.kind === "sgd");
 * ```
 */
export function sgd(options: Omit<Sgd, "kind"> = {}): Sgd {
  checkOptions("train with SGD", options, SGD_OPTIONS);
  return { kind: "sgd", ...options };
}

/** Learning rate schedule: linear warmup, then cosine decay. */
export interface Schedule {
  /** The peak rate. */
  readonly rate: number;
  /** Warmup steps. Default: 0. */
  readonly warmup?: number;
  /** The step at which the rate reaches its minimum. Absent: the rate stays at its peak. */
  readonly decay?: number;
  /** The minimum rate as a fraction of the peak. Default: 0.1. */
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

/** Input tensors of a model for one step, global and row-major, by input name. */
export interface Batch {
  readonly [input: string]: {
    readonly dtype: "f32" | "i32" | "u32";
    readonly shape: readonly number[];
    readonly data: Float32Array | Int32Array | Uint32Array;
  };
}

/** The batch of a step, counted from 1. It must be deterministic: a resumed training continues with the next batch. */
export type Batches = (step: number) => Batch;

/** Options of `train`. `Name`: names of the model's outputs. */
export interface TrainingOptions<Name extends string = string> {
  /** The output to minimize, a scalar. Default: `loss`. */
  readonly loss?: NoInfer<Name>;
  readonly optimizer: Optimizer;
  readonly schedule: Schedule;
  /** Maximum norm of all gradients, for clipping. Default: no clipping. */
  readonly clipNorm?: number;
  /** Micro-batches per step. Gradients are accumulated, weighted by the fraction of counted labels. Default: 1. */
  readonly accumulate?: number;
  /** Step size of routers' selection biases. Default: biases are constant. */
  readonly biasUpdate?: number;
  /** Storage dtype of all parameters; 16-bit parameters have f32 master weights. Default: f32. */
  readonly dtype?: TrainedDType;
  readonly data: Batches;
  /** Validation batches, `validationBatches` of them. They are not trained on. */
  readonly validation?: Batches;
  /** Number of validation batches. Default: 1. */
  readonly validationBatches?: number;
  /** Sizes of mesh axes, in order. Default: one rank. */
  readonly mesh?: { readonly [axis: string]: number };
  /** Tensor axes over mesh axes. Default: experts over `ep`, tokens over all. */
  readonly place?: Placement;
  /** Seed of the initial weights. Default: 0. */
  readonly seed?: number;
  /** Standard deviation of initial matrices. Default: 0.02. */
  readonly deviation?: number;
}

/** A declared training. */
export interface Training extends TrainingOptions {
  readonly model: Model;
}

const TRAININGS = new WeakSet<object>();

/** Whether a value is the result of `train`. */
export function isTraining(value: unknown): value is Training {
  return typeof value === "object" && value !== null && TRAININGS.has(value);
}

/**
 * Declares the training of a model. Computes nothing: `switchyard train FILE.ts` and `runTraining` of the engine
 * execute an exported training.
 *
 * Throws ModelError if the first argument is not a model, and DataError for an unknown option.
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
      "Cannot train this value: it is not a model. Give the result of 'model(…)'",
    );
  }
  checkOptions("train", options, TRAINING_OPTIONS);
  const training: Training = { ...options, model };
  TRAININGS.add(training);
  return training;
}
