/** Plans of a training step: executed ones, and those without text and devices. */

import {
  adamw,
  type CompileOptions,
  compileTraining,
  type CompileTrainingOptions,
  type DocumentTraining,
  isTraining,
  type Model,
  paramFacts,
  trace,
  type TrainedDType,
  type Training,
  type ZeroStage,
} from "../../compiler/mod.ts";
import { assertLegal, type LegalPlan, type Machine } from "../../spec/mod.ts";
import { meshAxes, type MeshSizes, stageAxis } from "../../spec/mesh.ts";
import type { Plan } from "../../spec/plan/plan.ts";
import type { RolloutBytes } from "../../spec/plan_summary.ts";
import { defaultBounds } from "../bounds.ts";
import {
  type Family,
  isFamily,
  type PublishedModel,
} from "../../models/mod.ts";
import { type FamilyOption, openCheckpoint } from "../checkpoint/checkpoint.ts";
import { compileDocumented } from "../compiled_from.ts";
import {
  familyConfiguration,
  findConfiguration,
} from "../checkpoint/configuration.ts";
import type { FileSystem } from "../files.ts";
import {
  adaptedModel,
  type LoraSettings,
  trainedAdapters,
} from "../lora/mod.ts";
import { compileOptions, type PlanOptions } from "../open.ts";
import { forMachine } from "../planner/mod.ts";
import { meshOptions } from "./declared_task.ts";
import { compiledAs } from "../checkpoint/stored_as.ts";
import { type Published, publishedOf } from "../target.ts";
import { weightBytes } from "./live_weights.ts";
import { compileRollouts, type RolloutsOf } from "./rollout_plan.ts";
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
  assertLegal(plan, { fitsSchema: true });
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
  const mesh = meshAxes(options.mesh ?? {});
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
  /** Optimizer and its settings. Default: as declared; otherwise AdamW. */
  readonly optimizer?: StepSettings["optimizer"];
  /** Maximum norm of all gradients, for clipping. Default: as declared; otherwise 1. */
  readonly clipNorm?: number;
  /**
   * Storage dtype of all parameters. Default: as declared; for a checkpoint with weights, that of the weights; else
   * f32. With `lora`, of the constant weights of a configuration; adapters are f32.
   */
  readonly dtype?: TrainedDType;
  /** Micro-batches per step. Default: as declared; otherwise 1. */
  readonly accumulate?: number;
  /** ZeRO stage. Default: 0. */
  readonly zero?: ZeroStage;
  /** For a checkpoint: whether attention and experts are recomputed. Default: false. */
  readonly recompute?: boolean;
  /** For a published model: adapters that are trained instead of the weights. Default: none. */
  readonly lora?: LoraSettings;
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
  const { optimizer, clipNorm, dtype, accumulate, machine, lora } = options;
  const { settings, ...step } = await stepOf(what, files, options);
  const chosen = {
    ...settings,
    ...optimizer === undefined ? {} : { optimizer },
    ...clipNorm === undefined ? {} : { clipNorm },
    // With adapters, it is the dtype of a configuration's weights.
    ...dtype === undefined || lora ? {} : { dtype },
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

/**
 * The bytes of weights that rollouts on a mesh share with a training of a published model, or receive after each
 * update.
 *
 * @param training the plan of `planTraining` with the same options
 */
export async function planRollouts(
  what: string | Family,
  files: FileSystem,
  { training, rolloutMesh, ...options }: PlanTrainingOptions & {
    readonly training: Plan;
    readonly rolloutMesh: MeshSizes;
  },
): Promise<RolloutBytes> {
  const { target, weights, trained } = await publishedStep(
    what,
    files,
    options,
  );
  const { bounds, machine } = options;
  const plan = await compileRollouts(
    target,
    { training, trained, weights },
    {
      ...bounds ? { bounds } : {},
      ...forMachine(machine, options),
      mesh: rolloutMesh,
    },
  );
  return { mesh: rolloutMesh, ...weightBytes(training, plan, trained) };
}

/** Default training options of a target. */
async function stepOf(
  what: string | Model | Family | Training,
  files: FileSystem,
  options: PlanTrainingOptions,
): Promise<Step> {
  const settings = { optimizer: adamw(), clipNorm: 1 };
  if (typeof what === "string" || isFamily(what)) {
    const { target, ...step } = await publishedStep(what, files, options);
    const { bounds = {}, recompute = false } = options;
    const published = publishedOf(target);
    return {
      ...step,
      model: published.build({
        ...defaultBounds(bounds, published.decoder),
        // The weight of the balancing loss changes only a constant of the plan.
        training: { auxiliary: 0.01, recompute },
      }),
      loss: "loss",
      settings,
    };
  }
  if (!isTraining(what)) return { model: what, loss: "loss", settings };
  return { model: what.model, loss: what.loss ?? "loss", settings: what };
}

/** The model of a checkpoint or a config.json, with its adapters, and the storage dtypes of its weights. */
async function publishedStep(
  what: string | Family,
  files: FileSystem,
  { family, lora, dtype }: PlanTrainingOptions,
): Promise<
  & { readonly target: Published }
  & Pick<RolloutsOf, "weights">
  & Pick<Step, "trained">
> {
  const configuration = isFamily(what)
    ? familyConfiguration(what, "")
    : await findConfiguration(what, files, { family });
  const adapted = (published: PublishedModel) =>
    lora ? adaptedModel(published, trainedAdapters(lora)) : published;
  const trained = lora ? "adapters" : "all";
  if (configuration === undefined) {
    const folder = what as string;
    const checkpoint = await openCheckpoint(folder, files, { family });
    return {
      target: {
        kind: "checkpoint",
        checkpoint: {
          ...checkpoint,
          published: adapted(checkpoint.published),
        },
      },
      weights: await storedIn(folder, files, trained),
      trained,
    };
  }
  const { published, storedAs } = configuration;
  const smallest = { maxTokens: 1, maxSequences: 1, maxContext: 1 };
  return {
    target: {
      kind: "configuration",
      configuration: { ...configuration, published: adapted(published) },
    },
    // Only constant weights have the dtype of the configuration.
    weights: lora
      ? compiledAs(
        storedAs(dtype),
        paramFacts(trace(published.build(smallest))),
      )
      : {},
    trained,
  };
}
