/** The plan of a step of training, without text to train on and without devices. */

import {
  adamw,
  type CompileOptions,
  compileTraining,
  isTraining,
  type Model,
  type TrainedDType,
  type Training,
} from "../../compiler/mod.ts";
import { assertLegal } from "../../spec/mod.ts";
import type { Plan } from "../../spec/plan.ts";
import { defaultBounds } from "../bounds.ts";
import { openConfiguration } from "../checkpoint.ts";
import type { FileSystem } from "../files.ts";
import { compileOptions, type PlanOptions } from "../open.ts";
import type { StepSettings } from "./settings.ts";
import { storedIn } from "./stored.ts";

/** How a step of training is compiled. */
export interface PlanTrainingOptions extends PlanOptions {
  /** Default: AdamW. */
  readonly optimizer?: StepSettings["optimizer"];
  /** Gradients are scaled down together where their norm is larger; default: 1. */
  readonly clipNorm?: number;
  /** What all parameters are stored as. Default: of a checkpoint with weights, what those are; else f32. */
  readonly dtype?: TrainedDType;
  /** `sharded`: ranks that hold the same parameter remember a part of it each. Default: `whole`. */
  readonly optimizerState?: "whole" | "sharded";
}

/**
 * Compile a step of training what is given: a checkpoint folder, of whose weights only the headers are read, or what a model file declares
 * or exports; a model has its loss as the output `loss`.
 *
 * Throws ModelError where the model cannot be trained, and what `compile` throws.
 */
export async function planTraining(
  what: string | Model | Training,
  files: FileSystem,
  options: PlanTrainingOptions,
): Promise<Plan> {
  const declared = typeof what === "string"
    ? {
      model: await decoderOf(what, files, options),
      weights: await storedIn(what, files),
    }
    : isTraining(what)
    ? what
    : { model: what };
  const { model, mesh, place, loss = "loss", weights = {}, ...own }:
    & Pick<Training, "model">
    & Partial<Training>
    & Pick<CompileOptions, "weights"> = declared;
  const { optimizerState = "whole" } = options;
  const dtype = options.dtype ?? own.dtype;
  const { biasUpdate } = own;
  const plan = await compileTraining(model, {
    ...place ? { place } : {},
    ...compileOptions(options),
    ...mesh && !options.mesh ? { mesh } : {},
    ...{ loss, optimizerState, weights },
    ...dtype === undefined ? {} : { dtype },
    optimizer: options.optimizer ?? own.optimizer ?? adamw(),
    clipNorm: options.clipNorm ?? own.clipNorm ?? 1,
    accumulate: (own.accumulate ?? 1) > 1,
    ...biasUpdate === undefined ? {} : { biasUpdate },
  });
  assertLegal(plan);
  return plan;
}

/** The model of a checkpoint, with its losses. */
async function decoderOf(
  folder: string,
  files: FileSystem,
  { bounds = {} }: PlanTrainingOptions,
): Promise<Model> {
  const { published } = await openConfiguration(folder, files);
  const { maxPositions } = published.decoder;
  return published.build({
    ...defaultBounds(bounds, maxPositions),
    // The weight of the balancing loss changes a constant, and nothing that a plan is read for.
    training: { auxiliary: 0.01 },
  });
}
