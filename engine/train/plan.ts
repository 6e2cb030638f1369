/** Plans of a training step: executed ones, and those without text and devices. */

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
import { stageAxis } from "../../spec/mesh.ts";
import { defaultBounds } from "../bounds.ts";
import { type Family, isFamily } from "../../models/mod.ts";
import { type FamilyOption, openConfiguration } from "../checkpoint.ts";
import { compileDocumented } from "../compiled_from.ts";
import { familyConfiguration, findConfiguration } from "../configuration.ts";
import type { FileSystem } from "../files.ts";
import { compileOptions, type PlanOptions } from "../open.ts";
import { forMachine } from "../planner/mod.ts";
import { meshOptions } from "./declared_task.ts";
import type { StepSettings } from "./settings.ts";
import { storedIn } from "./stored.ts";
import type { Task } from "./task.ts";

/** Parameters of a training step. */
export interface Step
  extends Pick<Task, "model" | "loss" | "weights" | "trained"> {
  readonly settings: Omit<StepSettings, "schedule" | "seed">;
  /** Outputs of the validation program. Default: the plan has none. */
  readonly validate?: readonly string[];
}

/** Compiles a training step, and verifies its plan. */
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

/** Compiler options of any plan, and of a training step. */
function howOf(
  { loss, settings, weights, trained, validate }: Step,
  options: StepOptions,
): {
  readonly options: CompileOptions;
  readonly training: DocumentTraining;
} {
  const { optimizer, clipNorm, accumulate = 1, biasUpdate, dtype } = settings;
  const { zero } = options;
  const mesh = Object.entries(options.mesh ?? {})
    .map(([name, size]) => ({ name, size }));
  // Stages work on different micro-batches at the same time, in one program.
  const piped = accumulate > 1 && stageAxis(mesh) !== undefined;
  return {
    options: {
      ...compileOptions(options),
      ...weights ? { weights } : {},
      ...zero === undefined ? {} : { zero },
    },
    training: {
      loss,
      optimizer,
      accumulate: accumulate > 1 && !piped,
      ...piped ? { microBatches: accumulate } : {},
      ...clipNorm === undefined ? {} : { clipNorm },
      ...biasUpdate === undefined ? {} : { biasUpdate },
      ...dtype === undefined ? {} : { dtype },
      ...trained === undefined ? {} : { trained },
      ...validate ? { validate } : {},
    },
  };
}

/** Options of planning a training step. */
export interface PlanTrainingOptions extends PlanOptions, FamilyOption {
  /** Compiles for this machine, without its limits. */
  readonly machine?: Machine | undefined;
  /** Default: as declared, else AdamW. */
  readonly optimizer?: StepSettings["optimizer"];
  /** Maximum norm of all gradients, for clipping. Default: as declared; otherwise 1. */
  readonly clipNorm?: number;
  /**
   * Storage dtype of all parameters. Default: as declared; for a checkpoint with weights, that of the weights; else
   * f32.
   */
  readonly dtype?: TrainedDType;
  /** Micro-batches per step. Default: as declared; otherwise 1. */
  readonly accumulate?: number;
  /** ZeRO stage. Default: 0. */
  readonly zero?: ZeroStage;
  /** For a checkpoint: whether attention and experts are recomputed. Default: false. */
  readonly recompute?: boolean;
}

/**
 * Compiles a training step of a target: a config.json, a checkpoint folder (only headers of weights are read), or an
 * export of a model file. A model has its loss as the output `loss`. Limits are not enforced: `planSummary` reports
 * what a plan needs beyond them.
 *
 * Throws ModelError if the model cannot be trained, and the errors of `compile`.
 */
export async function planTraining(
  what: string | Model | Family | Training,
  files: FileSystem,
  options: PlanTrainingOptions,
): Promise<LegalPlan> {
  const { optimizer, clipNorm, dtype, accumulate, machine } = options;
  const { settings, ...step } = await stepOf(what, files, options);
  const chosen = {
    ...settings,
    ...optimizer === undefined ? {} : { optimizer },
    ...clipNorm === undefined ? {} : { clipNorm },
    ...dtype === undefined ? {} : { dtype },
    ...accumulate === undefined ? {} : { accumulate },
  };
  return await compileDocumented(
    step.model,
    howOf({ ...step, settings: chosen }, {
      ...isTraining(what) ? meshOptions(what) : {},
      ...options,
      ...forMachine(machine, options),
    }),
  );
}

/** Default training options of a target. */
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
    ...defaultBounds(bounds, { maxPositions }),
    // The weight of the balancing loss changes only a constant of the plan.
    training: { auxiliary: 0.01, recompute },
  });
}
