/** The plan of a step of training: of one that is executed, and without text to train on and without devices. */

import {
  adamw,
  type CompileOptions,
  compileTraining,
  type CompileTrainingOptions,
  type DocumentTraining,
  isTraining,
  type Model,
  type TrainedDType,
  type Training,
  type ZeroStage,
} from "../../compiler/mod.ts";
import { assertLegal, type LegalPlan, type Machine } from "../../spec/mod.ts";
import { defaultBounds } from "../bounds.ts";
import { type Family, isFamily } from "../../models/mod.ts";
import { type FamilyOption, openConfiguration } from "../checkpoint.ts";
import { compileDocumented } from "../compiled_from.ts";
import { familyConfiguration, findConfiguration } from "../configuration.ts";
import type { FileSystem } from "../files.ts";
import { compileOptions, type PlanOptions } from "../open.ts";
import { forMachine } from "../planner/mod.ts";
import { placesOf } from "./declared_task.ts";
import type { StepSettings } from "./settings.ts";
import { storedIn } from "./stored.ts";
import type { Task } from "./task.ts";

/** What a step of training is compiled of. */
export interface Step extends Pick<Task, "model" | "loss" | "weights"> {
  readonly settings: Omit<StepSettings, "schedule" | "seed">;
  /** Outputs by which the loss is measured without training. Default: the plan has no program for that. */
  readonly validate?: readonly string[];
}

/** Compile a step of training, and verify its plan. */
export async function compileStep(
  step: Step,
  options: StepOptions,
): Promise<LegalPlan> {
  const how = howOf(step, options);
  const plan = await compileTraining(step.model, {
    ...how.options,
    ...how.training,
  });
  assertLegal(plan);
  return plan;
}

type StepOptions =
  & PlanOptions
  & Pick<CompileTrainingOptions, "zero">;

/** What the compiler is given: options of any plan, and of a step of training. */
function howOf(
  { loss, settings, weights, validate }: Step,
  options: StepOptions,
): {
  readonly options: CompileOptions;
  readonly training: DocumentTraining;
} {
  const { optimizer, clipNorm, accumulate = 1, biasUpdate, dtype } = settings;
  const { zero } = options;
  return {
    options: {
      ...compileOptions(options),
      ...weights ? { weights } : {},
      ...zero === undefined ? {} : { zero },
    },
    training: {
      loss,
      optimizer,
      accumulate: accumulate > 1,
      ...clipNorm === undefined ? {} : { clipNorm },
      ...biasUpdate === undefined ? {} : { biasUpdate },
      ...dtype === undefined ? {} : { dtype },
      ...validate ? { validate } : {},
    },
  };
}

/** How a step of training is compiled. */
export interface PlanTrainingOptions extends PlanOptions, FamilyOption {
  /** Compile for this machine, whatever its limits. */
  readonly machine?: Machine | undefined;
  /** Default: as declared, else AdamW. */
  readonly optimizer?: StepSettings["optimizer"];
  /** Gradients are scaled down together where their norm is larger. Default: as declared; of what is no training, 1. */
  readonly clipNorm?: number;
  /** What all parameters are stored as. Default: as declared; of a checkpoint with weights, what those are; else f32. */
  readonly dtype?: TrainedDType;
  /** What ranks that hold the same parameter share. Default: 0, nothing. */
  readonly zero?: ZeroStage;
  /** Of a checkpoint: compute what is inside attention and experts a second time. Default: it is kept. */
  readonly recompute?: boolean;
}

/**
 * Compile a step of training what is given: a config.json, a checkpoint folder, of whose weights only the headers are read, or what a model file declares
 * or exports; a model has its loss as the output `loss`. Limits are no reason to refuse: `planSummary` says what a plan needs
 * beyond them.
 *
 * Throws ModelError where the model cannot be trained, and what `compile` throws.
 */
export async function planTraining(
  what: string | Model | Family | Training,
  files: FileSystem,
  options: PlanTrainingOptions,
): Promise<LegalPlan> {
  const { optimizer, clipNorm, dtype, machine } = options;
  const { settings, ...step } = await stepOf(what, files, options);
  const chosen = {
    ...settings,
    ...optimizer === undefined ? {} : { optimizer },
    ...clipNorm === undefined ? {} : { clipNorm },
    ...dtype === undefined ? {} : { dtype },
  };
  return await compileDocumented(
    step.model,
    howOf({ ...step, settings: chosen }, {
      ...isTraining(what) ? placesOf(what) : {},
      ...options,
      ...forMachine(machine, options),
    }),
  );
}

/** How what is given is trained where nothing else is said. */
async function stepOf(
  what: string | Model | Family | Training,
  files: FileSystem,
  options: PlanTrainingOptions,
): Promise<Step> {
  const settings = { optimizer: adamw(), clipNorm: 1 };
  if (typeof what === "string" || isFamily(what)) {
    return {
      model: await decoderOf(what, files, options),
      loss: "loss",
      weights: isFamily(what) ? {} : await storedIn(what, files),
      settings,
    };
  }
  if (!isTraining(what)) return { model: what, loss: "loss", settings };
  return { model: what.model, loss: what.loss ?? "loss", settings: what };
}

/** The model of a checkpoint or a config.json, with its losses. */
async function decoderOf(
  what: string | Family,
  files: FileSystem,
  { bounds = {}, recompute = false, family }: PlanTrainingOptions,
): Promise<Model> {
  const { published } = isFamily(what)
    ? familyConfiguration(what, "")
    : await findConfiguration(what, files, { family }) ??
      await openConfiguration(what, files, { family });
  const { maxPositions } = published.decoder;
  return published.build({
    ...defaultBounds(bounds, maxPositions),
    // The weight of the balancing loss changes a constant, and nothing that a plan is read for.
    training: { auxiliary: 0.01, recompute },
  });
}
