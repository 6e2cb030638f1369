/** The plan of a command line, with its summary. */

import {
  adamw,
  familyOf,
  isFamily,
  loadTrainable,
  planRollouts,
  planTraining,
  type PlanTrainingOptions,
  sgd,
  type Summarized,
  summarizeTarget,
  type TrainedDType,
  trainedDType,
} from "../../engine/mod.ts";
import type { EncodingName } from "../../spec/weights/encoding.ts";
import type { LegalPlan, Machine, Mesh } from "../../spec/mod.ts";
import { meshSizes, rankCount } from "../../spec/mesh.ts";
import type { RolloutBytes } from "../../spec/plan_summary.ts";
import type { PlanFlags } from "../flags/flags.ts";
import type { CliIo } from "../io.ts";
import { parseLora, refuseFlags, UsageError } from "../flags/values.ts";
import { expertLoad } from "./experts.ts";
import { planOptions, targetOf } from "./options.ts";

/** Flags of the commands that inspect a plan. */
export interface SummaryFlags extends PlanFlags {
  /** A name from `machines/`, or a file. */
  readonly target?: string;
  readonly limits?: { readonly [limit: string]: number };
  /** The choice of experts in predicted steps: `even`, `zipf:S`, or a file. */
  readonly experts?: string;
  /** Memory of experts on disk. */
  readonly expertMemory?: number | "auto";
  readonly check?: boolean;
  readonly rank?: number;
  /** Use the plan of a training step. */
  readonly train?: boolean;
  readonly optimizer?: "adamw" | "sgd";
  readonly clip?: number;
  readonly accumulate?: number;
  readonly zero?: NonNullable<PlanTrainingOptions["zero"]>;
  readonly recompute?: boolean;
  /** Mesh of rollouts beside the training. */
  readonly rolloutMesh?: Mesh;
  readonly dtype?: EncodingName;
}

/** The flag that sets the bound of each axis of a checkpoint's model. */
const BOUND_FLAGS = {
  token: "--max-tokens",
  sequence: "--max-sequences",
  context: "--max-context",
};

/** Throws UsageError for flags that do not apply to a plan. */
export function checkSummaryFlags(flags: SummaryFlags): void {
  if (flags.experts !== undefined && flags.target === undefined) {
    throw new UsageError(
      "Cannot use --experts without --target: it sets the choice of experts in predicted steps. Leave it out, or give --target",
    );
  }
  if (
    flags.expertMemory !== undefined &&
    (flags.target === undefined || flags.train)
  ) {
    throw new UsageError(
      `Cannot use --expert-memory ${
        flags.train
          ? "with --train: experts are streamed for inference only"
          : "without --target: its disk decides the speed"
      }. Leave it out${flags.train ? "" : ", or give --target"}`,
    );
  }
  if (flags.train) {
    const { dtype } = flags;
    if (dtype !== undefined) trainedFlag(dtype);
    return;
  }
  refuseFlags(
    {
      "--optimizer": flags.optimizer,
      "--clip": flags.clip,
      "--accumulate": flags.accumulate,
      "--zero": flags.zero,
      "--recompute": flags.recompute,
      "--pipeline": flags.pipeline,
      "--rollout-mesh": flags.rolloutMesh,
    },
    "without --train: it is a training setting. Leave it out, or give --train",
  );
}

/** Returns `--dtype` of a training step. Throws UsageError for a dtype without training support. */
export function trainedFlag(dtype: EncodingName): TrainedDType {
  try {
    return trainedDType(dtype);
  } catch (error) {
    throw new UsageError((error as Error).message);
  }
}

/** Further options of the command. */
export interface SummarizedOptions {
  readonly machine: Machine | undefined;
  /** Use a plan document unchanged and ignore compile flags. Default: reject them. */
  readonly asIs?: boolean;
}

/** Compiles the target of a command line, and summarizes it. A plan document is used unchanged. */
export async function summarized(
  io: CliIo,
  model: string,
  flags: SummaryFlags,
  { machine, asIs = false }: SummarizedOptions,
): Promise<Summarized> {
  const against = {
    ...machine ? { machine } : {},
    ...flags.limits ? { limits: flags.limits } : {},
    ...flags.rank === undefined ? {} : { rank: flags.rank },
    experts: await expertLoad(io, flags.experts),
    expertMemory: flags.expertMemory,
  };
  if (flags.train) {
    const { plan, rollouts } = await trainingPlan(io, model, flags, machine);
    const made = await summarizeTarget(
      { kind: "plan", plan },
      io.files,
      against,
    );
    return rollouts
      ? { ...made, summary: { ...made.summary, rollouts } }
      : made;
  }
  const target = await targetOf(io, model, {
    family: flags.family,
    lora: flags.lora,
    withoutWeights: true,
  });
  const { dtype } = flags;
  if (dtype !== undefined && target.kind !== "configuration") {
    throw new UsageError(
      `Cannot use --dtype without --train: '${model}' defines the dtype of its weights. Leave it out, or give --train`,
    );
  }
  return await summarizeTarget(target, io.files, {
    ...planOptions(target, asIs && target.kind === "plan" ? {} : flags),
    ...against,
    ...target.kind === "model" ? {} : { flags: BOUND_FLAGS },
    ...dtype === undefined ? {} : { dtype },
    check: flags.check ?? false,
  });
}

/**
 * Returns the plan of a training step, and the weights of its rollouts. The exported training declaration is used if
 * present, otherwise the output `loss`.
 */
async function trainingPlan(
  io: CliIo,
  path: string,
  flags: SummaryFlags,
  machine: Machine | undefined,
): Promise<{ readonly plan: LegalPlan; readonly rollouts?: RolloutBytes }> {
  const { optimizer, clip, accumulate, zero, recompute, dtype } = flags;
  const { lora, rolloutMesh } = flags;
  const what = await loadTrainable(path, io.files);
  const of = typeof what === "string"
    ? { kind: "checkpoint" as const }
    : { kind: "model" as const };
  const isPublished = typeof what === "string" || isFamily(what);
  if (!isPublished) {
    refuseFlags(
      { "--lora": lora, "--rollout-mesh": rolloutMesh },
      "with a model file: it is for checkpoints and families. Leave it out",
    );
  }
  const options = {
    family: await familyOf(flags.family),
    ...planOptions(of, flags),
    machine,
    check: flags.check ?? false,
    ...accumulate === undefined ? {} : { accumulate },
    ...flags.limits ? { limits: flags.limits } : {},
    ...optimizer === undefined
      ? {}
      : { optimizer: optimizer === "sgd" ? sgd() : adamw() },
    ...clip === undefined ? {} : { clipNorm: clip },
    ...zero === undefined ? {} : { zero },
    ...recompute === undefined ? {} : { recompute },
    ...dtype === undefined ? {} : { dtype: trainedFlag(dtype) },
    ...lora === undefined ? {} : { lora: parseLora(lora) },
  };
  const plan = await planTraining(what, io.files, options);
  if (!rolloutMesh || !isPublished) return { plan };
  const rollouts = await planRollouts(what, io.files, {
    ...options,
    training: plan,
    rolloutMesh: meshSizes(rolloutMesh),
  });
  return { plan, rollouts };
}

/** Returns the number of ranks of the mesh, for measuring this machine. */
export function ranksOf(
  { mesh = [] }: SummaryFlags,
): { readonly ranks: number } {
  return { ranks: rankCount(mesh) };
}
