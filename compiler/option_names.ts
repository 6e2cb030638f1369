/** Names of the options of compilation and training. */

import type { OptionNames } from "../spec/options.ts";
import { STRATEGY_OPTIONS } from "../spec/strategies.ts";
import type { CompileOptions } from "./compile_graph.ts";
import type { CompileTrainingOptions } from "./compile_training.ts";
import type { AdamW, Sgd } from "./graph/optimizers.ts";
import type { Pages } from "./passes/mod.ts";
import type { TrainingOptions } from "./training.ts";
import type { Tuning } from "./tuning/table.ts";

/** Options of `compile`. */
export const COMPILE_OPTIONS: OptionNames<CompileOptions> = {
  mesh: true,
  place: true,
  weights: true,
  activations: true,
  limits: true,
  overLimits: true,
  check: true,
  countDropped: true,
  recordSquares: true,
  pages: true,
  kvCacheDtype: true,
  zero: true,
  tuning: true,
  ...STRATEGY_OPTIONS,
};

/** Options of `compileTraining`. */
export const COMPILE_TRAINING_OPTIONS: OptionNames<CompileTrainingOptions> = {
  ...COMPILE_OPTIONS,
  loss: true,
  optimizer: true,
  clipNorm: true,
  accumulate: true,
  microBatches: true,
  recompute: true,
  biasUpdate: true,
  trained: true,
  dtype: true,
  validate: true,
};

/** Options of a paged KV cache. */
export const PAGES: OptionNames<Pages> = {
  size: true,
  count: true,
  snapshots: true,
};

/** Kernel variants. */
export const TUNING: OptionNames<Tuning> = {
  matmul: true,
  pair: true,
  quantized: true,
  matmuls: true,
  attention: true,
  splitKeys: true,
  wideRows: true,
  headMajor: true,
  recurrence: true,
  asFiled: true,
  bytes: true,
  operands: true,
};

/** Options of `train`. */
export const TRAINING_OPTIONS: OptionNames<TrainingOptions> = {
  loss: true,
  optimizer: true,
  schedule: true,
  clipNorm: true,
  accumulate: true,
  biasUpdate: true,
  dtype: true,
  data: true,
  validation: true,
  validationBatches: true,
  mesh: true,
  place: true,
  seed: true,
  deviation: true,
};

/** Options of AdamW. */
export const ADAMW_OPTIONS: OptionNames<Omit<AdamW, "kind">> = {
  betas: true,
  epsilon: true,
  weightDecay: true,
};

/** Options of SGD. */
export const SGD_OPTIONS: OptionNames<Omit<Sgd, "kind">> = {
  momentum: true,
  weightDecay: true,
};
