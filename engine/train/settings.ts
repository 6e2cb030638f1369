/** Training settings that a checkpoint stores for an exact resume. */

import type { Optimizer, Schedule, TrainedDType } from "../../compiler/mod.ts";
import type { LoraSettings } from "../lora/mod.ts";
import type { Balance } from "../../models/mod.ts";
import { DataError } from "../../spec/errors.ts";
import type { TrainOn } from "./assistant_text.ts";
import { MAX_MICRO_BATCHES } from "../../spec/limits.ts";
import { checkOptions } from "../../spec/options.ts";
import { LORA_SETTINGS, SCHEDULE } from "../option_names.ts";

/** Settings that must not change during any training. */
export interface StepSettings {
  readonly optimizer: Optimizer;
  readonly schedule: Schedule;
  /** Maximum norm of all gradients, for clipping. Default: no clipping. */
  readonly clipNorm?: number;
  /** Micro-batches per step, whose gradients are accumulated. Default: 1. */
  readonly accumulate?: number;
  /** Step size of routers' selection biases. Default: biases are constant. */
  readonly biasUpdate?: number;
  /**
   * Storage dtype of all parameters; 16-bit parameters have f32 master weights. Default: for a checkpoint, that of its
   * weights; else f32.
   */
  readonly dtype?: TrainedDType;
  /** Seed of initial weights and of the order of sequences. Default: 0. */
  readonly seed?: number;
}

/** Settings that must not change during a training on text. */
export interface TrainSettings extends StepSettings {
  /** Sequences per batch. */
  readonly batch: number;
  /** Tokens per sequence. */
  readonly length: number;
  /** Trains low-rank adapters instead of the parameters. Default: all parameters are trained. */
  readonly lora?: LoraSettings;
  /** Weight of the balancing loss. Default: `router_aux_loss_coef` of config.json, else 0.01. */
  readonly auxiliary?: number;
  /** Whether that loss covers each layer separately, or all together as in transformers (default). */
  readonly balance?: Balance;
  /**
   * Whether attention and experts are recomputed for gradients. Gradients are equal except for the order of additions.
   * Default: false.
   */
  readonly recompute?: boolean;
  /** For conversations: the trained tokens. Default: those of the assistant. */
  readonly trainOn?: TrainOn;
  /**
   * For conversations: whether a batch has as many as fit into `batch * length` tokens, instead of `batch` of them.
   * Default: true.
   */
  readonly packing?: boolean;
}

/** Optional settings, with the default of those whose default is the same everywhere. */
const OPTIONAL: {
  readonly [
    K in Exclude<
      keyof TrainSettings,
      "optimizer" | "schedule" | "batch" | "length"
    >
  ]: TrainSettings[K] | undefined;
} = {
  clipNorm: undefined,
  accumulate: 1,
  biasUpdate: undefined,
  dtype: undefined,
  seed: undefined,
  lora: undefined,
  auxiliary: undefined,
  balance: undefined,
  recompute: false,
  trainOn: undefined,
  packing: undefined,
};

/** The settings of a training on text that differ from their defaults. */
export function textSettings(options: TrainSettings): TrainSettings {
  const { optimizer, schedule, batch, length } = options;
  const given = (Object.keys(OPTIONAL) as (keyof typeof OPTIONAL)[])
    .filter((name) => options[name] !== undefined)
    .filter((name) => options[name] !== OPTIONAL[name])
    .map((name) => [name, options[name]]);
  return { optimizer, schedule, batch, length, ...Object.fromEntries(given) };
}

/** Settings that must not change during a training with policy gradients. */
export interface PolicySettings {
  /** Samples per prompt, whose rewards are compared. Default: 8. */
  readonly samples: number;
  /** Maximum tokens of a sample. Default: 64. */
  readonly maxNewTokens: number;
  /** Distance from 1 at which probability ratios are clipped. Default: 0.2. */
  readonly clip: number;
  /** The same for ratios above 1. Default: `clip`. */
  readonly clipHigh?: number;
  /** Weight of the KL divergence from the initial model. Default: it is not computed. */
  readonly kl?: number;
  /** Optimizer steps per set of samples. Only in the first one are they samples of the current model. Default: 1. */
  readonly updates: number;
}

/** Saved settings of a training, on text or not. */
export type SavedSettings =
  & StepSettings
  & Partial<TrainSettings>
  & Partial<PolicySettings>;

/** Rejects invalid settings. Throws DataError. */
export function checkSettings(
  { schedule, clipNorm, batch, length, accumulate, ...rest }: SavedSettings,
): void {
  const { auxiliary, seed, biasUpdate, lora = {} } = rest;
  checkOptions("use a schedule", schedule, SCHEDULE);
  checkOptions("use adapters", lora, LORA_SETTINGS);
  const { samples, maxNewTokens, updates, clip, clipHigh, kl } = rest;
  const { rate, warmup, decay, floor } = schedule;
  const counts = {
    batch,
    length,
    accumulate,
    samples,
    maxNewTokens,
    updates,
  };
  const integers = { ...counts, warmup, decay, seed };
  const numbers = {
    rate,
    floor,
    clipNorm,
    auxiliary,
    biasUpdate,
    clip,
    clipHigh,
    kl,
  };
  for (const [name, value] of Object.entries({ ...integers, ...numbers })) {
    if (value === undefined) continue;
    const min = name in counts ? 1 : 0;
    if (value >= min && (!(name in integers) || Number.isSafeInteger(value))) {
      continue;
    }
    throw new DataError(
      `Cannot train with ${name} ${value}: expected a ${
        name in integers ? "whole number" : "number"
      } of at least ${min}`,
    );
  }
  if (accumulate !== undefined && accumulate > MAX_MICRO_BATCHES) {
    throw new DataError(
      `Cannot train with accumulate ${accumulate}: a step has at most ${MAX_MICRO_BATCHES} batches. Use fewer, larger ones`,
    );
  }
}

/** Rejects a resume with other data or other settings, whose result would be undefined. */
export function checkSame(
  folder: string,
  before: { readonly text: string; readonly settings: SavedSettings },
  now: { readonly text: string; readonly settings: SavedSettings },
): void {
  if (before.text !== now.text) {
    throw new DataError(
      `Cannot resume '${folder}': its text was another one. Give the same data, in the same order`,
    );
  }
  const old: { readonly [name: string]: unknown } = { ...before.settings };
  const current: { readonly [name: string]: unknown } = { ...now.settings };
  for (const name of new Set([...Object.keys(old), ...Object.keys(current)])) {
    const [was, is] = [canonical(old[name]), canonical(current[name])];
    if (was === is) continue;
    throw new DataError(
      `Cannot resume '${folder}': '${name}' was ${was}, and is ${is}. Leave it as it was, or start a new training from the checkpoint`,
    );
  }
}

/** A value as text, independent of the order of its keys. */
export function canonical(value: unknown): string {
  return JSON.stringify(
    value,
    (_, part: unknown) =>
      typeof part === "object" && part !== null && !Array.isArray(part)
        ? Object.fromEntries(
          Object.entries(part).sort(([a], [b]) => a < b ? -1 : 1),
        )
        : part,
  ) ?? "not given";
}
