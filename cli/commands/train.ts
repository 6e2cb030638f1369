/** `switchyard train`: train a checkpoint's model on text, with checkpoints from which it can be gone on with. */

import {
  adamW,
  rankPlace,
  readTraining,
  type Schedule,
  sgd,
  type StepMetrics,
  train,
  type TrainSettings,
} from "../../engine/mod.ts";
import type { DeviceFlags, PlanFlags } from "../flags.ts";
import type { CliIo } from "../io.ts";
import { createProgressBar } from "../progress.ts";
import { joinAsRank } from "../rank.ts";
import { readTextFile } from "../text_files.ts";
import { createTrainingBar, describeStep } from "../training_bar.ts";
import { finishLine, UsageError } from "../values.ts";
import { deviceOptions } from "./options.ts";

/** Flags that say what is trained, and how: they are saved, and cannot be changed later. */
interface SettingFlags {
  readonly batch?: number;
  readonly length?: number;
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
  readonly seed?: number;
}

/** Flags of `train`. */
export interface TrainFlags
  extends SettingFlags, DeviceFlags, Pick<PlanFlags, "mesh" | "place"> {
  readonly data: readonly string[];
  readonly out: string;
  readonly steps: number;
  readonly saveEvery?: number;
  readonly resume?: boolean;
  readonly tokenizer?: string;
  readonly json?: boolean;
}

const SETTINGS: { readonly [K in keyof Required<SettingFlags>]: string } = {
  ...{ batch: "--batch", length: "--length", optimizer: "--optimizer" },
  ...{ beta1: "--beta1", beta2: "--beta2", momentum: "--momentum" },
  ...{ weightDecay: "--weight-decay", lr: "--lr", warmup: "--warmup" },
  ...{ decay: "--decay", floor: "--floor", clip: "--clip", aux: "--aux" },
  seed: "--seed",
};

/** Train and print metrics. Ctrl-C ends it after the step under way, which is saved. */
export async function trainCommand(
  io: CliIo,
  folder: string,
  flags: TrainFlags,
): Promise<number> {
  const { out, steps, saveEvery, tokenizer, mesh, place, resume } = flags;
  if (flags.devices === "mpi") await joinAsRank(io, flags);
  const settings = resume
    ? await savedSettings(io, flags)
    : settingsOf(flags, steps);
  const data: string[] = [];
  for (const path of flags.data) data.push(await readTextFile(path, io.files));
  const interrupted = new AbortController();
  // Ranks that are processes must stop after the same step: 'launch' ends them all.
  const release = flags.devices === "mpi" ? () => {} : io.onInterrupt(() => {
    io.err("Stopping after this step; once more to stop at once");
    interrupted.abort();
  });
  const loading = createProgressBar(io);
  const ranks = mesh?.reduce((n, { size }) => n * size, 1) ?? 1;
  const metrics = train(resume ? out : folder, io.files, {
    ...settings,
    ...deviceOptions(io, flags),
    ...{ data, steps, out, now: io.now, resume: resume ?? false },
    ...saveEvery === undefined ? {} : { saveEvery },
    ...tokenizer === undefined ? {} : { tokenizer },
    ...mesh ? { mesh } : {},
    ...place ? { place } : {},
    statistics: ranks > 1 || flags.devices === "mpi",
    signal: interrupted.signal,
    onProgress: loading.update,
  });
  const quiet = (rankPlace()?.rank ?? 0) > 0;
  const bar = createTrainingBar(io, steps);
  let last: StepMetrics | undefined;
  try {
    for await (const step of metrics) {
      if (last === undefined) loading.stop();
      last = step;
      if (quiet) continue;
      if (flags.json) await io.out(`${JSON.stringify(toJson(step))}\n`);
      else await bar.step(step);
    }
  } finally {
    loading.stop();
    bar.stop();
    release();
  }
  if (quiet) return 0;
  if (!flags.json) await io.out(ending(out, last, steps));
  if (flags.job !== undefined) await io.out(`${finishLine(flags.job)}\n`);
  return 0;
}

function ending(
  out: string,
  last: StepMetrics | undefined,
  steps: number,
): string {
  if (last === undefined) return `Nothing to do: '${out}' has ${steps} steps\n`;
  const more = last.step < steps ? `; go on with --resume` : "";
  return `${describeStep(last)}\nWrote '${out}'${more}\n`;
}

function settingsOf(flags: TrainFlags, steps: number): TrainSettings {
  const { batch, length, lr, warmup, decay, floor, clip, aux, seed } = flags;
  const schedule: Schedule = {
    rate: lr ?? 1e-3,
    warmup: warmup ?? 0,
    decay: decay ?? steps,
    ...floor === undefined ? {} : { floor },
  };
  return {
    ...{ schedule, batch: batch ?? 8, length: length ?? 128, seed: seed ?? 0 },
    optimizer: optimizerOf(flags),
    clipNorm: clip ?? 1,
    ...aux === undefined ? {} : { auxiliary: aux },
  };
}

function optimizerOf(flags: SettingFlags): TrainSettings["optimizer"] {
  const { optimizer = "adamw", beta1, beta2, momentum } = flags;
  const useless = optimizer === "sgd"
    ? (["beta1", "beta2"] as const).find((name) => flags[name] !== undefined)
    : momentum === undefined
    ? undefined
    : "momentum";
  if (useless !== undefined) {
    throw new UsageError(
      `Cannot use ${
        SETTINGS[useless]
      } with ${optimizer}: it has no such number. Leave it out`,
    );
  }
  const decay = flags.weightDecay === undefined
    ? {}
    : { weightDecay: flags.weightDecay };
  return optimizer === "sgd"
    ? sgd({ ...decay, ...momentum === undefined ? {} : { momentum } })
    : adamW({ ...decay, betas: [beta1 ?? 0.9, beta2 ?? 0.95] });
}

async function savedSettings(
  io: CliIo,
  flags: TrainFlags,
): Promise<TrainSettings> {
  for (const [name, flag] of Object.entries(SETTINGS)) {
    if (flags[name as keyof SettingFlags] === undefined) continue;
    throw new UsageError(
      `Cannot use ${flag} with --resume: the training goes on as it was begun. Leave it out`,
    );
  }
  return (await readTraining(flags.out, io.files)).settings;
}

function toJson(metrics: StepMetrics): object {
  return {
    step: metrics.step,
    loss: metrics.loss,
    ce_loss: metrics.crossEntropy,
    aux_loss: metrics.auxiliary ?? null,
    learning_rate: metrics.rate,
    gradient_norm: metrics.gradientNorm,
    tokens: metrics.tokens,
    tokens_per_second: metrics.tokensPerSecond,
    expert_load: metrics.experts,
    sent_bytes: metrics.sentBytes,
    saved: metrics.saved,
  };
}
