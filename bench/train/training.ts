/** A step of training for the benchmarks: the bundled checkpoint's model from random weights, on random tokens. */

import { availableParallelism } from "node:os";
import {
  adamw,
  compileTraining,
  type CompileTrainingOptions,
} from "../../compiler/mod.ts";
import { type AdapterChoice, selectDevices } from "../../engine/devices.ts";
import { initialWeights } from "../../engine/train/initial.ts";
import { TUNING } from "../../engine/tuning.ts";
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

/** Sequences of a step, tokens of one, and the learning rate. */
export const STEP = { batch: 8, length: 128, rate: 1e-3 };

/** A configuration as config.json has it. */
export type Configuration = { readonly [name: string]: unknown };

/** How the step is taken. */
export interface TrainingPlace extends Partial<CompileTrainingOptions> {
  readonly adapter: AdapterChoice;
  readonly mesh: { readonly [axis: string]: number };
  /** Compute blocks a second time for gradients. */
  readonly again?: boolean;
  /** Record where the time goes; steps take longer. */
  readonly traced?: boolean;
}

/** A training that is loaded. */
export interface LoadedTraining {
  readonly plan: Plan;
  /** Take a step; gives its loss. */
  step(): Promise<number>;
  statistics(): readonly RankStatistics[];
  /** Milliseconds by what steps of the plan do, over all ranks, since it was loaded. */
  times(): { readonly [op: string]: number };
  close(): Promise<void>;
}

/** Random tokens and what follows each. */
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

/** The weights before the first step. */
export function weightsOf(plan: Plan): { readonly [name: string]: HostTensor } {
  return initialWeights(plan, { seed: 0, deviation: 0.02 });
}

/** Compile a step and load it. */
export async function loadTraining(
  config: Configuration,
  { adapter, mesh, traced = false, again = false, ...more }: TrainingPlace,
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
