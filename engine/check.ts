/** The mistakes of a target: a model file's types and domain, or a checkpoint's configuration and tensors. */

import { isTraining, type Model, type Training } from "../compiler/mod.ts";
import { type Family, isFamily } from "../models/mod.ts";
import type { Checked, Diagnostic } from "../compiler/source/check.ts";
import { DataError, ModelError } from "../spec/errors.ts";
import type { FileSystem } from "./files.ts";
import { planTarget } from "./open.ts";
import { checkTensors } from "./weights.ts";
import {
  resolveTarget,
  type ResolveTargetOptions,
  type Target,
} from "./target.ts";
import { withTensors } from "./tensors.ts";

export { formatDiagnostic, formatError } from "../compiler/source/check.ts";
export type { Checked, Diagnostic } from "../compiler/source/check.ts";
export { parseReference } from "../compiler/source/load.ts";

/** Load a target; model files are run with `switchyard-moe` meaning this package. */
export async function loadTarget(
  path: string,
  files: FileSystem,
  { family, withoutWeights = false }: LoadTargetOptions = {},
): Promise<Target> {
  return await resolveTarget(path, files, {
    withoutWeights,
    family: await familyOf(family),
    loadModel: loadModelFile,
  });
}

/** A family, or the file that exports it, which runs. */
export type FamilyReference = string | Family | undefined;

/** Options of `loadTarget`. */
export interface LoadTargetOptions
  extends Pick<ResolveTargetOptions, "withoutWeights"> {
  /** The family of a config.json. Default: a built-in one. */
  readonly family?: FamilyReference;
}

/** The family that is meant. */
export async function familyOf(
  family: FamilyReference,
): Promise<Family | undefined> {
  return typeof family === "string" ? await loadFamily(family) : family;
}

/** The model or the family that a file exports, `file.ts` or `file.ts#export`. */
async function loadModelFile(reference: string): Promise<Model | Family> {
  const { MODEL, resolveExport } = await import("../compiler/source/load.ts");
  return await resolveExport(reference, {
    ...MODEL,
    is: (value): value is Model | Family => MODEL.is(value) || isFamily(value),
  });
}

/** The family that a file exports, `file.ts` or `file.ts#export`. */
async function loadFamily(reference: string): Promise<Family> {
  const { resolveExport } = await import("../compiler/source/load.ts");
  return await resolveExport(reference, {
    noun: "family",
    op: "defineFamily(…)",
    is: isFamily,
  });
}

const TRAINING = { noun: "training", op: "train(…)", is: isTraining };

/** The training that a model file exports, `file.ts` or `file.ts#export`. */
export async function loadTrainingFile(reference: string): Promise<Training> {
  const { resolveExport } = await import("../compiler/source/load.ts");
  return await resolveExport(reference, TRAINING);
}

/** The training or the family that a file exports, `file.ts` or `file.ts#export`. */
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
 * What a path names that can be trained: a config.json, a checkpoint folder, or what a model file exports, a training before
 * a model or a family.
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

/** The mistakes of a model file or a checkpoint folder; none if it is sound. Throws DataError if there is no such thing. */
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

/** As `checkTarget` of a model file, again and again: each call of what is returned reads what has changed. */
export async function openCheckFile(
  path: string,
): Promise<() => Promise<Checked>> {
  const { openCheck } = await import("../compiler/source/check.ts");
  return await openCheck(path);
}
