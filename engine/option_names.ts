/** Names of the options of public functions. */

import type { OptionNames } from "../spec/options.ts";
import { type Strategy, STRATEGY_NAMES } from "../spec/strategies.ts";
import type { SelectDevicesOptions } from "./devices.ts";
import type { GenerateTextOptions } from "./generation/generate_text.ts";
import type { OpenOptions } from "./open.ts";

const STRATEGIES = Object.fromEntries(
  STRATEGY_NAMES.map((name) => [name, true]),
) as OptionNames<Strategy>;

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
  ...STRATEGIES,
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
