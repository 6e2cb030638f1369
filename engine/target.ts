/** Targets: a checkpoint folder, a model file, or a saved plan at a path. */

import type { Model } from "../compiler/mod.ts";
import { type Family, isFamily, type PublishedModel } from "../models/mod.ts";
import { DataError, PlanError } from "../spec/errors.ts";
import { type LegalPlan, verifyPlanText } from "../spec/mod.ts";
import {
  type Checkpoint,
  type FamilyOption,
  openCheckpoint,
} from "./checkpoint/checkpoint.ts";
import {
  type Configuration,
  documentOf,
  familyConfiguration,
  findConfiguration,
} from "./checkpoint/configuration.ts";
import type { FileSystem } from "./files.ts";
import { adaptCheckpoint, readLora } from "./lora/mod.ts";

/** A target that can be compiled and run; a configuration has no weights. */
export type Target =
  | { readonly kind: "checkpoint"; readonly checkpoint: Checkpoint }
  | { readonly kind: "configuration"; readonly configuration: Configuration }
  | { readonly kind: "model"; readonly model: Model }
  | { readonly kind: "plan"; readonly plan: LegalPlan };

/** Options of `resolveTarget`. */
export interface ResolveTargetOptions extends FamilyOption {
  /** Loads the model or the family of a TypeScript file, `file.ts` or `file.ts#export`. */
  readonly loadModel: (specifier: string) => Promise<Model | Family>;
  /** A folder of low-rank adapters for a checkpoint (LoRA, in PEFT's layout). Default: none. */
  readonly lora?: string | undefined;
  /** Whether a config.json without weights is accepted, in a folder or as a file. Default: false. */
  readonly withoutWeights?: boolean;
}

/** Detects and reads the target at a path. */
export async function resolveTarget(
  path: string,
  files: FileSystem,
  options: ResolveTargetOptions,
): Promise<Target> {
  const file = path.replace(/#[^#/]*$/, "");
  const kind = await files.stat(path) ?? await files.stat(file);
  if (kind === undefined) {
    throw new DataError(
      `Cannot read '${file}': there is no such file or folder. Check the path`,
    );
  }
  if (options.lora !== undefined && kind !== "folder") {
    throw new DataError(
      `Cannot use adapters with '${path}': they are for a checkpoint folder. Leave them out, or give a folder`,
    );
  }
  if (options.withoutWeights && options.lora === undefined) {
    const configuration = await findConfiguration(path, files, options);
    if (configuration) return { kind: "configuration", configuration };
  }
  if (kind === "folder") {
    const checkpoint = await openCheckpoint(path, files, options);
    return {
      kind: "checkpoint",
      checkpoint: options.lora === undefined
        ? checkpoint
        : adaptCheckpoint(checkpoint, await readLora(options.lora, files)),
    };
  }
  if (/\.[cm]?[jt]sx?$/.test(file)) {
    const model = await options.loadModel(path);
    return isFamily(model)
      ? {
        kind: "configuration",
        configuration: familyConfiguration(model, path),
      }
      : { kind: "model", model };
  }
  if (path.endsWith(".json")) {
    try {
      return { kind: "plan", plan: await readPlan(path, files) };
    } catch (error) {
      const document = await documentOf(path, files);
      // Other files, such as tokenizer.json, have versions that are text.
      if (
        document && typeof document["version"] !== "number" &&
        !("architectures" in document)
      ) {
        throw new DataError(
          `Cannot use '${path}': it has neither the 'architectures' of a config.json nor the 'version' of a plan. Give one of them`,
        );
      }
      if (!await findConfiguration(path, files)) throw error;
      throw new DataError(
        `Cannot use '${path}': it is a configuration, without weights. Give the folder of its checkpoint`,
      );
    }
  }
  if (path.endsWith(".safetensors")) {
    throw new DataError(
      `Cannot use '${path}': it is a file of weights. Give the folder with its config.json`,
    );
  }
  throw new DataError(
    `Cannot use '${path}': it is no model file, checkpoint folder or plan. Give a .ts file, a folder with config.json, or a .json plan`,
  );
}

/** Reads and verifies a saved plan. */
async function readPlan(
  path: string,
  files: FileSystem,
): Promise<LegalPlan> {
  const { plan, errors } = verifyPlanText(
    await files.readText(path),
    { file: path },
  );
  if (plan === undefined || errors.length > 0) {
    // The error of a step is more specific than resulting errors of the plan.
    const first = errors.find(({ step }) => step !== null) ?? errors[0]!;
    const more = errors.length > 1 ? ` (and ${errors.length - 1} more)` : "";
    throw new PlanError(`${first.message}${more}`);
  }
  return plan as LegalPlan;
}

/** A target with a configuration. */
export type Published = Extract<
  Target,
  { readonly kind: "checkpoint" | "configuration" }
>;

/** Whether a target has a configuration. */
export function isPublished(target: Target): target is Published {
  return target.kind === "checkpoint" || target.kind === "configuration";
}

/** The model of a configuration. */
export function publishedOf(
  target: Published,
): PublishedModel {
  return target.kind === "checkpoint"
    ? target.checkpoint.published
    : target.configuration.published;
}

/** The folder of a checkpoint. */
export function folderOf(target: Target): string | undefined {
  return target.kind === "checkpoint" ? target.checkpoint.folder : undefined;
}

/** Prefixes of unused tensors that a checkpoint may have. */
export function unusedOf(target: Target): readonly string[] {
  return target.kind === "checkpoint" ? target.checkpoint.published.unused : [];
}
