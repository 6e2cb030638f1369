/** Families on meshes with pipeline stages, with their results of inference and training. */

import {
  type DeviceSharing,
  planTraining,
  trainCheckpoint,
} from "../../engine/mod.ts";
import { TUNING } from "../../engine/tune/tuning.ts";
import { CPU_LIMITS } from "../../runtime/cpu/mod.ts";
import { onRank } from "../../spec/plan/plan.ts";
import type { ScheduleName } from "../../spec/schedule.ts";
import { checkpointFolder, files, loadFolder, meshOf } from "./checkpoints.ts";
import { readJson } from "./read_tensors.ts";
import { digestOf } from "./run_bytes.ts";
import { tinyConfig, tinyModel, tinyOptions } from "./tiny_training.ts";

/** Families, by recorded checkpoint: tied embeddings, a dense first layer, attention sinks and windows, recurrences. */
export const STAGE_FAMILIES = [
  "granitemoe-8e",
  "deepseekv3-16e",
  "gptoss-8e",
  "qwen3next-16e",
] as const;

/** Meshes with pipeline stages. */
export const STAGE_MESHES = [
  "pp=2",
  "pp=4",
  "pp=2,ep=2",
  "pp=2,tp=2",
  "pp=2,dp=2",
] as const;

/** Inference and training that one process runs. */
export interface StageCell {
  readonly mesh: string;
  readonly schedule: ScheduleName;
  /** Folder with the configuration of the model to train. */
  readonly model: string;
  /** Checkpoint of the same model, for inference. */
  readonly checkpoint: string;
  /** Folder for the trained checkpoint. */
  readonly out: string;
}

/** Results of a process. */
export interface StageResult {
  /** Hash of logits and generated tokens. */
  readonly outputs: string;
  /** Bytes allocated in training by the process's rank with most. */
  readonly memory: number;
}

/** Creates a folder with the configuration of a family with four layers and the demo's vocabulary. */
export async function stageModel(
  t: { teardown(fn: () => void): unknown },
  family: string,
): Promise<string> {
  const { vocab_size } = await tinyConfig();
  const config = readJson(`${checkpointFolder(family)}/config.json`);
  return await tinyModel(t, { ...config, vocab_size, num_hidden_layers: 4 });
}

const PROMPTS = [[5, 6, 7, 8, 9], [4, 3, 2], [11, 12, 13, 14]];

/** Hashes logits and generated tokens of a checkpoint. */
export async function outputsOn(
  { checkpoint, mesh }: Pick<StageCell, "checkpoint" | "mesh">,
  sharing: DeviceSharing,
): Promise<string> {
  const setup = { mesh, sharing, adapter: "cpu" } as const;
  return await digestOf(await loadFolder(checkpoint, setup), PROMPTS);
}

const STEPS = 2, ACCUMULATE = 3;

/**
 * Trains two steps of three micro-batches into `out`. A mesh without stages has no schedule. Returns the bytes of this
 * process's rank with most.
 */
export async function trainOn(
  { model, mesh, schedule, out }:
    & Pick<StageCell, "model" | "mesh" | "out">
    & Partial<Pick<StageCell, "schedule">>,
  sharing: DeviceSharing,
): Promise<number> {
  const steps = trainCheckpoint(
    model,
    files,
    tinyOptions(mesh, STEPS, {
      accumulate: ACCUMULATE,
      ...schedule ? { pipeline: schedule } : {},
      clipNorm: 1,
      sharing,
      out,
    }),
  );
  for await (const { step, memoryBytes } of steps) {
    // Completing the training would end the MPI job.
    if (step === STEPS) return memoryBytes;
  }
  throw new Error(`${STEPS} steps were not executed`);
}

/** Returns the bytes that `plan --train` predicts for each rank. */
export async function plannedMemory(
  { model, mesh, schedule }: Pick<StageCell, "model" | "mesh" | "schedule">,
): Promise<number[]> {
  const { batch, length, optimizer } = tinyOptions(mesh, STEPS);
  const plan = await planTraining(model, files, {
    mesh: meshOf(mesh),
    pipeline: schedule,
    accumulate: ACCUMULATE,
    bounds: {
      maxTokens: batch * length,
      maxSequences: batch,
      maxContext: length,
    },
    ...optimizer ? { optimizer } : {},
    tuning: TUNING.cpu,
    limits: CPU_LIMITS,
  });
  return Array.from(
    { length: plan.ranks },
    (_, rank) => onRank(plan.peakBytes, rank),
  );
}
