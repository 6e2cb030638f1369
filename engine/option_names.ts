/** Names of the options of public functions. */

import type { Schedule } from "../compiler/mod.ts";
import type { OptionNames } from "../spec/options.ts";
import { STRATEGY_OPTIONS } from "../spec/strategies.ts";
import type { SelectDevicesOptions } from "./devices.ts";
import type { GenerateTextOptions } from "./generation/generate_text.ts";
import type { LoraSettings } from "./lora/mod.ts";
import type { OpenOptions } from "./open.ts";
import type { QuantizeOptions } from "./quantize/mod.ts";
import type { TrainSettings } from "./train/settings.ts";
import type {
  RunTrainingOptions,
  TrainOptions,
  TrainPolicyOptions,
} from "./train/train.ts";

const DEVICES: OptionNames<SelectDevicesOptions> = {
  sharing: true,
  adapter: true,
  notice: true,
  timestamps: true,
  gpu: true,
  graphics: true,
  systemInfo: true,
  threads: true,
  deadlineMs: true,
  untrusted: true,
  expertMemory: true,
};

/** Options of loading a target. */
export const OPEN_OPTIONS: OptionNames<OpenOptions> = {
  mesh: true,
  place: true,
  weights: true,
  random: true,
  bounds: true,
  need: true,
  ...DEVICES,
  ...STRATEGY_OPTIONS,
  pages: true,
  kvCacheDtype: true,
  activations: true,
  replay: true,
  layers: true,
  next: true,
  check: true,
  countDropped: true,
  recordSquares: true,
  limits: true,
  overLimits: true,
  tuning: true,
  tunings: true,
  allowKernels: true,
  preload: true,
  onProgress: true,
  tracer: true,
  statistics: true,
  equal: true,
  companions: true,
};

/** Options of quantizing a checkpoint. */
export const QUANTIZE_OPTIONS: OptionNames<QuantizeOptions> = {
  to: true,
  out: true,
  rules: true,
  importance: true,
  encoder: true,
  onProgress: true,
};

/** Options of executing a declared training. */
export const RUN_TRAINING_OPTIONS: OptionNames<RunTrainingOptions> = {
  ...DEVICES,
  mesh: true,
  place: true,
  stages: true,
  pipeline: true,
  numerics: true,
  statistics: true,
  onProgress: true,
  zero: true,
  steps: true,
  out: true,
  saveEvery: true,
  validateEvery: true,
  validationBatches: true,
  resume: true,
  onBegin: true,
  signal: true,
  now: true,
};

const TRAIN_SETTINGS: OptionNames<TrainSettings> = {
  optimizer: true,
  schedule: true,
  clipNorm: true,
  accumulate: true,
  biasUpdate: true,
  dtype: true,
  seed: true,
  batch: true,
  length: true,
  lora: true,
  auxiliary: true,
  balance: true,
  recompute: true,
  trainOn: true,
  packing: true,
};

/** Options of training on text. */
export const TRAIN_OPTIONS: OptionNames<TrainOptions> = {
  ...RUN_TRAINING_OPTIONS,
  ...TRAIN_SETTINGS,
  family: true,
  data: true,
  validation: true,
  tokenizer: true,
};

/** Options of training with policy gradients. */
export const TRAIN_POLICY_OPTIONS: OptionNames<TrainPolicyOptions> = {
  ...RUN_TRAINING_OPTIONS,
  ...TRAIN_SETTINGS,
  family: true,
  samples: true,
  maxNewTokens: true,
  clip: true,
  clipHigh: true,
  kl: true,
  updates: true,
  prompts: true,
  reward: true,
  rewardIdentity: true,
  loss: true,
  reference: true,
  rolloutMesh: true,
  rolloutNumerics: true,
};

/** Numerics of rollouts. */
export const ROLLOUT_NUMERICS: OptionNames<
  NonNullable<TrainPolicyOptions["rolloutNumerics"]>
> = { kvCacheDtype: true, numerics: true };

/** Fields of a learning rate schedule. */
export const SCHEDULE: OptionNames<Schedule> = {
  rate: true,
  warmup: true,
  decay: true,
  floor: true,
};

/** Settings of adapters in a training. */
export const LORA_SETTINGS: OptionNames<LoraSettings> = {
  rank: true,
  alpha: true,
  targets: true,
};

/** Options of text generation. */
export const GENERATE_TEXT_OPTIONS: OptionNames<GenerateTextOptions> = {
  maxNewTokens: true,
  onText: true,
  temperature: true,
  topK: true,
  topP: true,
  minP: true,
  seed: true,
  repeatPenalty: true,
  presencePenalty: true,
  frequencyPenalty: true,
  bias: true,
  grammar: true,
  logprobs: true,
  entropy: true,
};
