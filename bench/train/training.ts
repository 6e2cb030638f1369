/** A training step for the benchmarks: the bundled checkpoint's model with random weights and random tokens. */

import { availableParallelism } from "node:os";
import {
  adamw,
  compileTraining,
  type CompileTrainingOptions,
} from "../../compiler/mod.ts";
import { type AdapterChoice, selectDevices } from "../../engine/devices.ts";
import { initialWeights } from "../../engine/train/initial.ts";
import { TUNING } from "../../engine/tune/tuning.ts";
import { publishedModel } from "../../models/published.ts";
import {
  createSession,
  type HostTensor,
  type RankStatistics,
  tensorsInMemory,
  Tracer,
} from "../../runtime/mod.ts";
import type { Plan } from "../../spec/plan/plan.ts";
import { randomValues } from "../session.ts";

/** Sequences of a step, tokens of a sequence, and the learning rate. */
export const STEP = { batch: 8, length: 128, rate: 1e-3 };

/** A configuration in the form of config.json. */
export type Configuration = { readonly [name: string]: unknown };

/** Options of a training step. */
export interface TrainingSetup extends Partial<CompileTrainingOptions> {
  readonly adapter: AdapterChoice;
  readonly mesh: { readonly [axis: string]: number };
  /** Recompute blocks for gradients. */
  readonly again?: boolean;
  /** Record times, which makes steps slower. */
  readonly traced?: boolean;
}

/** A loaded training. */
export interface LoadedTraining {
  readonly plan: Plan;
  /** Runs a step and returns its loss. */
  step(): Promise<number>;
  statistics(): readonly RankStatistics[];
  /** Returns milliseconds by op of the plan, over all ranks, since loading. */
  times(): { readonly [op: string]: number };
  close(): Promise<void>;
}

/** Returns random tokens and their next tokens. */
export function batchOf(
  { vocab_size }: Configuration,
): { readonly ids: Int32Array; readonly labels: Int32Array } {
  const draw = (seed: number) =>
    Int32Array.from(
      randomValues(STEP.batch * STEP.length, seed),
      (value) => Math.floor((value + 1) / 2 * Number(vocab_size)),
    );
  return { ids: draw(1), labels: draw(2) };
}

/** Returns the weights before the first step. */
export function weightsOf(plan: Plan): { readonly [name: string]: HostTensor } {
  return initialWeights(plan, { seed: 0, deviation: 0.02 });
}

/** Compiles a step and loads it. */
export async function loadTraining(
  config: Configuration,
  { adapter, mesh, traced = false, again = false, ...more }: TrainingSetup,
): Promise<LoadedTraining> {
  const { batch, length, rate } = STEP;
  const tokens = batch * length;
  const selected = await selectDevices({
    sharing: "shared",
    adapter,
    threads: availableParallelism(),
    timestamps: traced,
  });
  const model = publishedModel(config).build({
    maxTokens: tokens,
    maxSequences: batch,
    maxContext: length,
    training: {
      auxiliary: Number(config["router_aux_loss_coef"]),
      recompute: again,
    },
  });
  const plan = await compileTraining(model, {
    mesh,
    loss: "loss",
    clipNorm: 1,
    limits: selected.limits,
    optimizer: adamw({ betas: [0.9, 0.95], weightDecay: 0.1 }),
    tuning: TUNING[selected.kind],
    ...more,
  });
  const opened = await selected.open(plan);
  const tracer = new Tracer(() => performance.now());
  const session = await createSession(plan, {
    devices: opened.devices,
    tensors: tensorsInMemory(weightsOf(plan), "random weights"),
    ...traced ? { tracer } : {},
  });
  const { ids, labels } = batchOf(config);
  const row = (data: Int32Array): HostTensor => ({
    dtype: "i32",
    shape: [tokens],
    data,
  });
  const scalar = (value: number): HostTensor => ({
    dtype: "f32",
    shape: [],
    data: Float32Array.of(value),
  });
  const each = (of: (i: number) => number) =>
    row(Int32Array.from({ length: tokens }, (_, i) => of(i)));
  let taken = 0;
  return {
    plan,
    step: async () => {
      const { loss } = await session.run(plan.programs[0]!.name, {
        ids: row(ids),
        labels: row(labels),
        sequence: each((i) => Math.floor(i / length)),
        position: each((i) => i % length),
        learning_rate: scalar(rate),
        step: scalar(++taken),
      }, { outputs: ["loss"] });
      return loss!.data[0]!;
    },
    statistics: () => session.statistics().ranks,
    times: () => {
      const sums: { [op: string]: number } = {};
      for (const { ph, cat, dur } of tracer.toTrace().traceEvents) {
        if (ph !== "X" || cat === "program") continue;
        sums[cat] = (sums[cat] ?? 0) + (dur ?? 0) / 1000;
      }
      return sums;
    },
    close: async () => {
      session.close();
      await opened.close();
    },
  };
}
