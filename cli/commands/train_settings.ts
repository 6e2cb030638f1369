/** The training settings from the flags of `switchyard train`. */

import {
  adamw,
  type LoraSettings,
  type PolicySettings,
  readTraining,
  type Schedule,
  sgd,
  type TrainedDType,
  type TrainOn,
  type TrainSettings,
} from "../../engine/mod.ts";
import type { FileSystem } from "../../engine/mod.ts";
import { DataError } from "../../spec/mod.ts";
import { refuseFlags, UsageError } from "../flags/values.ts";

/** Flags of training settings. They are saved and cannot change when the training is resumed. */
export interface SettingFlags {
  readonly batch?: number;
  readonly length?: number;
  readonly accumulate?: number;
  readonly optimizer?: "adamw" | "sgd";
  readonly beta1?: number;
  readonly beta2?: number;
  readonly momentum?: number;
  readonly weightDecay?: number;
  readonly lr?: number;
  readonly warmup?: number;
  readonly decay?: number;
  readonly floor?: number;
  readonly clip?: number;
  readonly aux?: number;
  readonly balance?: "layer" | "together";
  readonly biasUpdate?: number;
  readonly lora?: LoraSettings;
  readonly recompute?: boolean;
  readonly dtype?: TrainedDType;
  readonly trainOn?: TrainOn;
  /** Absent and true: the default. */
  readonly packing?: boolean;
  readonly seed?: number;
  readonly samples?: number;
  readonly maxNewTokens?: number;
  readonly updates?: number;
  readonly clipRatio?: number;
  readonly clipRatioHigh?: number;
  readonly kl?: number;
}

/** The flags of settings that only policy gradients have, and the settings. */
export const POLICY_SETTINGS = {
  samples: "samples",
  maxNewTokens: "maxNewTokens",
  updates: "updates",
  clipRatio: "clip",
  clipRatioHigh: "clipHigh",
  kl: "kl",
} as const satisfies {
  readonly [F in keyof SettingFlags]?: keyof PolicySettings;
};

/** The settings of policy gradients that flags give. */
export function policySettingsOf(
  flags: SettingFlags,
): Partial<PolicySettings> {
  return Object.fromEntries(
    Object.entries(POLICY_SETTINGS).flatMap(([flag, setting]) => {
      const value = flags[flag as keyof typeof POLICY_SETTINGS];
      return value === undefined ? [] : [[setting, value]];
    }),
  );
}

/** The flag of each setting. */
export const SETTINGS: {
  readonly [K in keyof Required<SettingFlags>]: string;
} = {
  batch: "--batch",
  length: "--length",
  optimizer: "--optimizer",
  beta1: "--beta1",
  beta2: "--beta2",
  momentum: "--momentum",
  weightDecay: "--weight-decay",
  lr: "--lr",
  warmup: "--warmup",
  decay: "--decay",
  floor: "--floor",
  clip: "--clip",
  aux: "--aux",
  balance: "--balance",
  recompute: "--recompute",
  biasUpdate: "--bias-update",
  lora: "--lora",
  dtype: "--dtype",
  trainOn: "--train-on",
  packing: "--no-packing",
  accumulate: "--accumulate",
  seed: "--seed",
  samples: "--samples",
  maxNewTokens: "--max-new-tokens",
  updates: "--updates",
  clipRatio: "--clip-ratio",
  clipRatioHigh: "--clip-ratio-high",
  kl: "--kl",
};

/** Throws UsageError for a settings flag if the settings are already defined elsewhere. */
export function refuseSettings(
  flags: SettingFlags,
  { beside, because }: { readonly beside: string; readonly because: string },
): void {
  const given = withoutDefaults(flags);
  refuseFlags(
    Object.fromEntries(
      Object.entries(SETTINGS).map(([name, flag]) =>
        [flag, given[name as keyof SettingFlags]] as const
      ),
    ),
    `with ${beside}: ${because}. Leave it out`,
  );
}

/** Commander sets a flag that can be negated. */
function withoutDefaults(flags: SettingFlags): SettingFlags {
  const { packing, ...others } = flags;
  return packing === false ? { packing, ...others } : others;
}

/** Returns the settings of a new training on text. `steps`: where the decay of the learning rate ends by default. */
export function settingsOf(
  flags: SettingFlags,
  steps: number | undefined,
): TrainSettings {
  const { batch, length, lr, warmup, decay, floor, clip, aux, seed } = flags;
  const { balance, accumulate, recompute, biasUpdate, dtype } = flags;
  const { trainOn, packing, lora } = withoutDefaults(flags);
  const end = decay ?? steps;
  const schedule: Schedule = {
    rate: lr ?? 1e-3,
    warmup: warmup ?? 0,
    ...end === undefined ? {} : { decay: end },
    ...floor === undefined ? {} : { floor },
  };
  return {
    schedule,
    batch: batch ?? 8,
    length: length ?? 128,
    seed: seed ?? 0,
    optimizer: optimizerOf(flags),
    clipNorm: clip ?? 1,
    ...aux === undefined ? {} : { auxiliary: aux },
    ...balance === undefined ? {} : { balance },
    ...biasUpdate === undefined ? {} : { biasUpdate },
    ...recompute ? { recompute } : {},
    ...dtype === undefined ? {} : { dtype },
    ...accumulate === undefined ? {} : { accumulate },
    ...trainOn === undefined ? {} : { trainOn },
    ...packing === undefined ? {} : { packing },
    ...lora === undefined ? {} : { lora },
  };
}

function optimizerOf(flags: SettingFlags): TrainSettings["optimizer"] {
  const { optimizer = "adamw", beta1, beta2, momentum } = flags;
  refuseFlags(
    optimizer === "sgd"
      ? { [SETTINGS.beta1]: beta1, [SETTINGS.beta2]: beta2 }
      : { [SETTINGS.momentum]: momentum },
    `with ${optimizer}: it has no such setting. Leave it out`,
  );
  const decay = flags.weightDecay === undefined
    ? {}
    : { weightDecay: flags.weightDecay };
  return optimizer === "sgd"
    ? sgd({ ...decay, ...momentum === undefined ? {} : { momentum } })
    : adamw({ ...decay, betas: [beta1 ?? 0.9, beta2 ?? 0.95] });
}

/** Returns the settings of a resumed training on text. Throws UsageError if a flag contradicts them. */
export async function savedSettings(
  out: string,
  files: FileSystem,
  flags: SettingFlags,
): Promise<TrainSettings & Partial<PolicySettings>> {
  const { batch, length, ...rest } = (await readTraining(out, files)).settings;
  if (batch === undefined || length === undefined) {
    throw new DataError(
      `Cannot resume '${out}' as with a checkpoint: a model file was trained. Give that file instead of the folder`,
    );
  }
  const settings = { batch, length, ...rest };
  const saved = flagsOf(settings);
  const given = withoutDefaults(flags);
  for (const [key, flag] of Object.entries(SETTINGS)) {
    const name = key as keyof SettingFlags;
    const [now, before] = [given[name], saved[name]].map((value) =>
      typeof value === "object" ? JSON.stringify(value) : value
    );
    if (now === undefined || now === before) continue;
    throw new UsageError(
      `Cannot use ${flag} ${now} with --resume: the training started ${
        before === undefined ? "without it" : `with ${before}`
      }. Leave it out`,
    );
  }
  return settings;
}

/** Returns the flags that produce given settings. */
function flagsOf(
  { optimizer, schedule, ...rest }: TrainSettings & Partial<PolicySettings>,
): {
  readonly [K in keyof Required<SettingFlags>]: SettingFlags[K] | undefined;
} {
  const adam = optimizer.kind === "adamW" ? optimizer : undefined;
  const sgd = optimizer.kind === "sgd" ? optimizer : undefined;
  return {
    batch: rest.batch,
    length: rest.length,
    accumulate: rest.accumulate ?? 1,
    optimizer: adam ? "adamw" : "sgd",
    beta1: adam?.betas?.[0],
    beta2: adam?.betas?.[1],
    momentum: sgd?.momentum,
    weightDecay: optimizer.weightDecay,
    lr: schedule.rate,
    warmup: schedule.warmup,
    decay: schedule.decay,
    floor: schedule.floor,
    clip: rest.clipNorm,
    aux: rest.auxiliary,
    balance: rest.balance,
    biasUpdate: rest.biasUpdate,
    lora: rest.lora,
    recompute: rest.recompute,
    dtype: rest.dtype,
    trainOn: rest.trainOn,
    packing: rest.packing,
    seed: rest.seed ?? 0,
    samples: rest.samples,
    maxNewTokens: rest.maxNewTokens,
    updates: rest.updates,
    clipRatio: rest.clip,
    clipRatioHigh: rest.clipHigh,
    kl: rest.kl,
  };
}
