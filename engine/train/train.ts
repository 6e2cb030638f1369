/** Training: steps of one plan, and checkpoints in between. */

import type { CompileTrainingOptions, Training } from "../../compiler/mod.ts";
import { type TensorDirectory, tensorsInMemory } from "../../runtime/mod.ts";
import type { Family } from "../../models/mod.ts";
import { openWorld } from "../../runtime/mpi/mod.ts";
import type { Plan } from "../../spec/plan/plan.ts";
import { listWeightFiles } from "../checkpoint.ts";
import type { SelectDevicesOptions } from "../devices.ts";
import type { FileSystem } from "../files.ts";
import {
  type Opened,
  type OpenOptions,
  openPlan,
  type PlanOptions,
} from "../open.ts";
import type { Tensors } from "../run.ts";
import { checkpointTask, type TextOptions } from "./checkpoint_task.ts";
import { declaredTask } from "./declared_task.ts";
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
import { withTensors } from "../tensors.ts";

/** Options of any training. */
export interface RunTrainingOptions
  extends
    SelectDevicesOptions,
    Pick<PlanOptions, "mesh" | "place">,
    Pick<OpenOptions, "statistics" | "onProgress">,
    Pick<CompileTrainingOptions, "zero"> {
  /** Steps in all; those of a training that is gone on with count. */
  readonly steps: number;
  /** Folder for checkpoints. Default: none are written. */
  readonly out?: string;
  /** Steps from one checkpoint to the next. Default: only at the end. */
  readonly saveEvery?: number;
  /** Steps from one validation to the next. Default: only at the end. */
  readonly validateEvery?: number;
  /** Batches of a validation that is not the last one, evenly spread. Default: all. */
  readonly validationBatches?: number;
  /** Go on with what was saved in `out`. */
  readonly resume?: boolean;
  /** Called before the first step, when everything is loaded. */
  readonly onBegin?: () => void;
  /** Ends training after the current step; it is saved. */
  readonly signal?: AbortSignal;
  /** A clock in milliseconds. */
  readonly now: () => number;
}

/** Options of training a checkpoint's model. */
export interface TrainOptions extends TextOptions, RunTrainingOptions {}

/**
 * Train the model of a checkpoint folder, or of a family with its default sizes; without weights, from random ones. Gives the metrics of each step once it
 * is done, and a checkpoint has been written if one is due. What is saved is a checkpoint folder like any other, and holds
 * what is needed to go on as if training had never stopped.
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
  checkSettings(options);
  yield* execute(
    () => checkpointTask(what, files, options),
    files,
    options,
  );
}

/**
 * Execute what `train(model, …)` declares. A mesh and placements that are given here count instead of those declared.
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

/** Keep others out of a folder whose training is gone on with, before more of it is read than its index. */
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
  // Ranks that are processes stop after the same step.
  const stopping = async () => {
    const local = signal?.aborted ? "stop" : "";
    return (await opened.gatherTexts(local, "going on")).includes("stop");
  };
  try {
    let saved = run.step;
    const save = async (step: number) => {
      if (out === undefined || saved === step) return;
      saved = step;
      await saveRun(run, step, { out, files });
    };
    options.onBegin?.();
    for (let step = run.step + 1; step <= steps; step++) {
      if (await stopping()) break;
      const metrics = await takeStep(run, step, now);
      const due = validateEvery !== undefined && step % validateEvery === 0;
      const validation = step === steps
        ? await measure(run)
        : due
        ? await measure(run, options.validationBatches)
        : undefined;
      const toSave = saveEvery !== undefined && step % saveEvery === 0;
      if (toSave || step === steps || await stopping()) await save(step);
      run.step = step;
      yield { ...metrics, validation, saved: saved === step };
    }
    // Whoever asks to stop between two steps.
    await save(run.step);
    await opened.finish();
  } finally {
    await unlock?.();
    await opened.close();
  }
}

/** A training that is open, and what lets others into a folder that it has taken. */
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
    const opened = await openWith(task, options, async (plan) => {
      initial = await task.initial(plan);
      return tensorsInMemory(storedTensors(plan, initial), task.where);
    });
    return await undoneOnError(opened.close, async () => {
      const { plan, rank } = opened;
      writeMasters(opened, task.settings.optimizer, initial);
      const begun = { opened, task, step: 0, sent: 0 };
      if (out === undefined || rank > 0) return begun;
      const unlock = await lockFolder(out, files);
      await undoneOnError(unlock, async () => {
        // Others may have been at the folder until now.
        await checkFolder(out, files);
        await task.prepare(out, plan);
      });
      return { ...begun, unlock };
    });
  }
  const folder = out ?? task.where;
  const before = await readTraining(folder, files);
  checkSame(folder, before, task);
  const paths = await listWeightFiles(folder, files);
  return await withTensors(paths, files, async (tensors) => {
    const opened = await openWith(
      task,
      options,
      () => Promise.resolve(tensors),
    );
    return await undoneOnError(opened.close, async () => {
      await checkParameters(folder, before, tensors, opened);
      const { optimizer } = task.settings;
      await loadOptimizerState(folder, files, before, {
        ...opened,
        optimizer,
      });
      return { opened, task, step: before.step, sent: 0 };
    });
  });
}

async function openWith(
  task: Task,
  options: RunTrainingOptions,
  tensors: (plan: Plan) => Promise<TensorDirectory>,
): Promise<Opened> {
  const { mesh, place, text, settings, where, validation } = task;
  const step = validation
    ? { ...task, validate: [task.loss, ...LOSSES] }
    : task;
  return await openPlan({
    plan: (chosen) => compileStep(step, { ...options, ...chosen }),
    tensors,
    where,
  }, {
    ...mesh ? { mesh } : {},
    ...place ? { place } : {},
    ...options,
    equal: { text, "way of training": canonical(settings) },
  });
}

/** Do something; where it fails, undo what went before it. */
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
  { opened, task: { settings, text, taken } }: Run,
  step: number,
  { out, files }: { readonly out: string; readonly files: FileSystem },
): Promise<void> {
  const { optimizer } = settings;
  const position = step * taken;
  const state = { step, position, text, settings };
  await saveTraining(out, files, { ...opened, optimizer }, state);
}
