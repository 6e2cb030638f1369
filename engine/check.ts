/** Checks of a target: a model file's types and domain errors, or a checkpoint's configuration and tensors. */

import { isTraining, type Model, type Training } from "../compiler/mod.ts";
import { type Family, isFamily } from "../models/mod.ts";
import type { Checked, Diagnostic } from "../compiler/source/check.ts";
import { DataError, ModelError } from "../spec/errors.ts";
import type { FileSystem } from "./files.ts";
import type { Reward } from "./train/policy_rollouts.ts";
import { planTarget } from "./open.ts";
import { checkTensors } from "./checkpoint/weights.ts";
import {
  resolveTarget,
  type ResolveTargetOptions,
  type Target,
} from "./target.ts";
import { withTensors } from "./checkpoint/tensors.ts";

export { formatDiagnostic, formatError } from "../compiler/source/check.ts";
export type { Checked, Diagnostic } from "../compiler/source/check.ts";
export { parseReference } from "../compiler/source/load.ts";

/** Loads a target. Model files run with `switchyard-moe` resolved to this package. */
export async function loadTarget(
  path: string,
  files: FileSystem,
  { family, lora, withoutWeights = false }: LoadTargetOptions = {},
): Promise<Target> {
  return await resolveTarget(path, files, {
    withoutWeights,
    lora,
    family: await familyOf(family),
    loadModel: loadModelFile,
  });
}

/** A family, or a file that exports one; the file is executed. */
export type FamilyReference = string | Family | undefined;

/** Options of `loadTarget`. */
export interface LoadTargetOptions
  extends Pick<ResolveTargetOptions, "lora" | "withoutWeights"> {
  /** The family of a config.json. Default: a built-in one. */
  readonly family?: FamilyReference;
}

/** Resolves a family reference. */
export async function familyOf(
  family: FamilyReference,
): Promise<Family | undefined> {
  return typeof family === "string" ? await loadFamily(family) : family;
}

/** The model or the family exported by `file.ts` or `file.ts#export`. */
async function loadModelFile(reference: string): Promise<Model | Family> {
  const { MODEL, resolveExport } = await import("../compiler/source/load.ts");
  return await resolveExport(reference, {
    ...MODEL,
    is: (value): value is Model | Family => MODEL.is(value) || isFamily(value),
  });
}

/** The family exported by `file.ts` or `file.ts#export`. */
async function loadFamily(reference: string): Promise<Family> {
  const { resolveExport } = await import("../compiler/source/load.ts");
  return await resolveExport(reference, {
    noun: "family",
    op: "defineFamily(…)",
    is: isFamily,
  });
}

const TRAINING = { noun: "training", op: "train(…)", is: isTraining };

/** The training exported by `file.ts` or `file.ts#export`. */
export async function loadTrainingFile(reference: string): Promise<Training> {
  const { resolveExport } = await import("../compiler/source/load.ts");
  return await resolveExport(reference, TRAINING);
}

/** The reward exported by `file.ts` or `file.ts#export`. */
export async function loadReward(reference: string): Promise<Reward> {
  const { resolveExport } = await import("../compiler/source/load.ts");
  return await resolveExport(reference, {
    noun: "reward",
    op: "(prompt, text) => number",
    is: (value): value is Reward => typeof value === "function",
  });
}

/** The training or the family exported by `file.ts` or `file.ts#export`. */
export async function loadTrainedFile(
  reference: string,
): Promise<Training | Family> {
  const { resolveExport } = await import("../compiler/source/load.ts");
  return await resolveExport(reference, {
    ...TRAINING,
    is: (value): value is Training | Family =>
      isTraining(value) || isFamily(value),
  });
}

/**
 * The trainable thing at a path: a config.json, a checkpoint folder, or the export of a model file, a training before a
 * model or a family.
 */
export async function loadTrainable(
  path: string,
  files: FileSystem,
): Promise<string | Model | Family | Training> {
  if (path.endsWith(".json") || await files.stat(path) === "folder") {
    return path;
  }
  try {
    return await loadTrainedFile(path);
  } catch (error) {
    const none = error instanceof ModelError &&
      error.message.startsWith("Cannot find");
    if (!none) throw error;
    const { resolveModel } = await import("../compiler/source/load.ts");
    return await resolveModel(path);
  }
}

/**
 * The mistakes of a model file or a checkpoint folder; none if it is correct. Throws DataError if it does not exist.
 */
export async function checkTarget(
  path: string,
  files: FileSystem,
  options: Pick<LoadTargetOptions, "family"> = {},
): Promise<Diagnostic[]> {
  if (await files.stat(path) !== "folder") {
    const { checkModel } = await import("../compiler/source/check.ts");
    return await checkModel(path);
  }
  try {
    const target = await loadTarget(path, files, options);
    const plan = await planTarget(target, files);
    if (target.kind === "checkpoint") {
      const { weightFiles, folder, published } = target.checkpoint;
      const { unused } = published;
      await withTensors(weightFiles, files, (tensors) => {
        checkTensors(plan, tensors, { where: folder, unused });
        return Promise.resolve();
      });
    }
    return [];
  } catch (error) {
    if (error instanceof DataError) return [{ message: error.message }];
    throw error;
  }
}

/** Repeated `checkTarget` for a model file: each call of the returned function reads the changed files. */
export async function openCheckFile(
  path: string,
): Promise<() => Promise<Checked>> {
  const { openCheck } = await import("../compiler/source/check.ts");
  return await openCheck(path);
}
