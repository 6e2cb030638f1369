/** Training: steps of one plan, and checkpoints in between. */

import type { CompileTrainingOptions, Training } from "../../compiler/mod.ts";
import { tensorsInMemory } from "../../runtime/mod.ts";
import type { Family } from "../../models/mod.ts";
import { openWorld } from "../../runtime/mpi/mod.ts";
import { DataError } from "../../spec/errors.ts";
import { checkOptions } from "../../spec/options.ts";
import { listWeightFiles } from "../checkpoint/checkpoint.ts";
import type { SelectDevicesOptions } from "../devices.ts";
import type { FileSystem } from "../files.ts";
import {
  type Loadable,
  type Opened,
  type OpenOptions,
  openPlan,
  type PlanOptions,
} from "../open.ts";
import {
  ROLLOUT_NUMERICS,
  RUN_TRAINING_OPTIONS,
  TRAIN_OPTIONS,
  TRAIN_POLICY_OPTIONS,
} from "../option_names.ts";
import type { Tensors } from "../run.ts";
import { checkpointTask, type TextOptions } from "./checkpoint_task.ts";
import { declaredTask } from "./declared_task.ts";
import { type PolicyOptions, policyTask } from "./policy_task.ts";
import { checkParameters, loadOptimizerState } from "./load.ts";
import { compileStep } from "./plan.ts";
import {
  checkFolder,
  lockFolder,
  readTraining,
  saveTraining,
} from "./saved.ts";
import { canonical, checkSame, checkSettings } from "./settings.ts";
import {
  LOSSES,
  measure,
  type Run,
  type StepMetrics,
  takeStep,
} from "./step.ts";
import { storedTensors, writeMasters } from "./stored.ts";
import type { Task } from "./task.ts";
import { withTensors } from "../checkpoint/tensors.ts";

/** Options of any training. */
export interface RunTrainingOptions
  extends
    SelectDevicesOptions,
    Pick<PlanOptions, "mesh" | "place" | "stages" | "pipeline" | "numerics">,
    Pick<OpenOptions, "statistics" | "onProgress">,
    Pick<CompileTrainingOptions, "zero"> {
  /** Total steps, including those before a resume. */
  readonly steps: number;
  /** Folder for checkpoints. Default: none are written. */
  readonly out?: string;
  /** Steps between checkpoints. Default: only at the end. */
  readonly saveEvery?: number;
  /** Steps between validations. Default: only at the end. */
  readonly validateEvery?: number;
  /** Batches of each validation except the last, evenly spaced. Default: all. */
  readonly validationBatches?: number;
  /** Whether to resume from `out`. */
  readonly resume?: boolean;
  /** Called before the first step, after loading. */
  readonly onBegin?: () => void;
  /** Ends the training after the current step, which is saved. */
  readonly signal?: AbortSignal;
  /** A clock in milliseconds. */
  readonly now: () => number;
}

/** Options of training a checkpoint's model. */
export interface TrainOptions extends TextOptions, RunTrainingOptions {}

/**
 * Trains the model of a checkpoint folder, or of a family with its default sizes; without weights, from random ones.
 * Yields the metrics of each step after it is complete and any checkpoint is written. The result is an ordinary
 * checkpoint folder that can be resumed exactly. Throws DataError for an unknown option.
 *
 * @example
 * ```ts
 * const metrics = trainCheckpoint("examples/demo-lm", files, {
 *   data: [() => [text]], steps: 100, batch: 8, length: 128,
 *   optimizer: adamw(), schedule: { rate: 1e-3, warmup: 10, decay: 100 },
 *   out: "trained", adapter: "auto", now: () => performance.now(),
 * });
 * for await (const { step, loss } of metrics) console.log(step, loss);
 * ```
 */
export async function* trainCheckpoint(
  what: string | Family,
  files: FileSystem,
  options: TrainOptions,
): AsyncGenerator<StepMetrics, void, undefined> {
  checkOptions("train", options, TRAIN_OPTIONS);
  checkSettings(options);
  yield* execute(
    () => checkpointTask(what, files, options),
    files,
    options,
  );
}

/** Options of training with policy gradients. */
export interface TrainPolicyOptions extends PolicyOptions, RunTrainingOptions {}

/**
 * Trains a checkpoint with policy gradients: each step samples responses to prompts, rewards them, and trains on them.
 * Yields the metrics of each step, as `trainCheckpoint`. Rollouts have the bits of the training's forward pass on any
 * mesh. Throws DataError for an unknown option, and for options that do not fit together.
 *
 * @example
 * ```ts
 * const metrics = trainPolicy("examples/demo-lm", files, {
 *   prompts, reward: (_, text) => text.split("e").length, steps: 20, batch: 16, length: 96,
 *   optimizer: adamw(), schedule: { rate: 1e-4 }, adapter: "auto", now: () => performance.now(),
 * });
 * for await (const { step, policy } of metrics) console.log(step, policy?.reward);
 * ```
 */
export async function* trainPolicy(
  folder: string,
  files: FileSystem,
  options: TrainPolicyOptions,
): AsyncGenerator<StepMetrics, void, undefined> {
  checkOptions("train", options, TRAIN_POLICY_OPTIONS);
  const { steps, updates = 1, rolloutNumerics = {} } = options;
  checkOptions("use rollout numerics", rolloutNumerics, ROLLOUT_NUMERICS);
  if (steps % updates !== 0) {
    throw new DataError(
      `Cannot take ${steps} steps with ${updates} updates per set of samples: the last set would be incomplete. Change one of them`,
    );
  }
  checkSettings(options);
  yield* execute(() => policyTask(folder, files, options), files, options);
}

/**
 * Executes the training declared by `train(model, …)`. A given mesh and placements override the declared ones. Throws
 * DataError for an unknown option.
 *
 * @example
 * ```ts
 * const metrics = runTraining(training, files, {
 *   steps: 100, out: "trained", adapter: "auto", now: () => performance.now(),
 * });
 * for await (const { step, loss } of metrics) console.log(step, loss);
 * ```
 */
export async function* runTraining(
  training: Training,
  files: FileSystem,
  options: RunTrainingOptions,
): AsyncGenerator<StepMetrics, void, undefined> {
  checkOptions("train", options, RUN_TRAINING_OPTIONS);
  checkSettings(training);
  yield* execute(() => declaredTask(training, files), files, options);
}

async function* execute(
  begin: () => Promise<Task>,
  files: FileSystem,
  options: RunTrainingOptions,
): AsyncGenerator<StepMetrics, void, undefined> {
  const { out, resume = false } = options;
  if (out !== undefined && !resume) await checkFolder(out, files);
  const unlock = resume ? await lockSaved(files, options) : undefined;
  try {
    const task = await begin();
    try {
      yield* takeSteps(task, files, options);
    } finally {
      await task.close();
    }
  } finally {
    await unlock?.();
  }
}

/** Locks a folder for a resume before more than its index is read. */
async function lockSaved(
  files: FileSystem,
  { out, sharing }: RunTrainingOptions,
): Promise<(() => Promise<void>) | undefined> {
  const { rank } = sharing === "mpi" ? await openWorld() : { rank: 0 };
  if (out === undefined || rank > 0) return undefined;
  await readTraining(out, files);
  return await lockFolder(out, files);
}

async function* takeSteps(
  task: Task,
  files: FileSystem,
  options: RunTrainingOptions,
): AsyncGenerator<StepMetrics, void, undefined> {
  const { steps, saveEvery, validateEvery, out, signal, now } = options;
  const run = await openTraining(task, files, options);
  const { opened, unlock } = run;
  // All processes stop after the same step.
  const stopping = async () => {
    const local = signal?.aborted ? "stop" : "";
    return (await opened.gatherTexts(local, "going on")).includes("stop");
  };
  try {
    const save = async (step: number) => {
      if (out === undefined || run.saved === step) return;
      run.saved = step;
      await saveRun(run, step, { out, files });
    };
    options.onBegin?.();
    task.begin?.(opened);
    const { stepsPerSave = 1 } = task;
    for (let step = run.step + 1; step <= steps; step++) {
      const between = run.step % stepsPerSave === 0;
      if (await stopping() && between) break;
      const metrics = await takeStep(run, step, now);
      const due = validateEvery !== undefined && step % validateEvery === 0;
      const validation = step === steps
        ? await measure(run)
        : due
        ? await measure(run, options.validationBatches)
        : undefined;
      const toSave = saveEvery !== undefined && step % saveEvery === 0;
      const stops = step === steps || await stopping();
      if ((toSave || stops) && step % stepsPerSave === 0) await save(step);
      run.step = step;
      yield { ...metrics, validation, saved: run.saved === step };
    }
    // Handles a stop request between two steps.
    await save(run.step);
    await opened.finish();
  } finally {
    await unlock?.();
    await opened.close();
  }
}

/** An open training, and the function that unlocks its folder. */
interface OpenRun extends Run {
  readonly unlock?: () => Promise<void>;
}

async function openTraining(
  task: Task,
  files: FileSystem,
  options: RunTrainingOptions,
): Promise<OpenRun> {
  const { out, resume = false } = options;
  if (!resume) {
    let initial: Tensors = {};
    const opened = await withTensors(
      task.constants ?? [],
      files,
      (constants, keepFiles) =>
        openWith(task, options, {
          keepFiles,
          tensors: async (plan) => {
            initial = await task.initial(plan);
            const begun = storedTensors(plan, initial);
            return new Map([
              ...constants,
              ...tensorsInMemory(begun, task.where),
            ]);
          },
        }),
    );
    return await undoneOnError(opened.close, async () => {
      const { plan, rank } = opened;
      writeMasters(opened, task.settings.optimizer, initial);
      const begun = { opened, task, step: 0, saved: 0, sent: 0 };
      if (out === undefined || rank > 0) return begun;
      const unlock = await lockFolder(out, files);
      await undoneOnError(unlock, async () => {
        // Another process may have changed the folder until now.
        await checkFolder(out, files);
        await task.prepare(out, plan);
      });
      return { ...begun, unlock };
    });
  }
  const folder = out ?? task.where;
  const before = await readTraining(folder, files);
  checkSame(folder, before, task);
  const paths = [
    ...await listWeightFiles(folder, files),
    ...task.constants ?? [],
  ];
  return await withTensors(paths, files, async (tensors, keepFiles) => {
    const opened = await openWith(task, options, {
      keepFiles,
      tensors: () => Promise.resolve(tensors),
    });
    return await undoneOnError(opened.close, async () => {
      await checkParameters(folder, before, tensors, {
        ...opened,
        trained: task.trained,
      });
      const { optimizer } = task.settings;
      await loadOptimizerState(folder, files, before, {
        ...opened,
        optimizer,
      });
      const { step } = before;
      return { opened, task, step, saved: step, sent: 0 };
    });
  });
}

async function openWith(
  task: Task,
  options: RunTrainingOptions,
  source: Pick<Loadable, "tensors" | "keepFiles">,
): Promise<Opened> {
  const { mesh, place, text, settings, where, validation } = task;
  const step = validation
    ? { ...task, validate: [task.loss, ...LOSSES] }
    : task;
  const { companions = [] } = task;
  return await openPlan({
    ...source,
    plan: (chosen) => compileStep(step, { ...options, ...chosen }),
    where,
    companions,
  }, {
    ...mesh ? { mesh } : {},
    ...place ? { place } : {},
    ...options,
    equal: { text, "way of training": canonical(settings) },
  });
}

/** Runs an action; if it fails, undoes the previous one. */
async function undoneOnError<T>(
  undo: () => Promise<void>,
  action: () => Promise<T>,
): Promise<T> {
  try {
    return await action();
  } catch (error) {
    await undo();
    throw error;
  }
}

async function saveRun(
  { opened, task }: Run,
  step: number,
  { out, files }: { readonly out: string; readonly files: FileSystem },
): Promise<void> {
  const { settings, text, taken, trained } = task;
  const { optimizer } = settings;
  const position = step * taken;
  const state = { step, position, text, settings };
  await saveTraining(out, files, { ...opened, optimizer, trained }, state);
  if (opened.rank === 0) await task.saved?.(out);
}
