/** `switchyard train`: train a checkpoint's model on text, or run the training that a model file declares. */

import {
  familyOf,
  isFamily,
  loadTrainedFile,
  type PlanTrainingOptions,
  rankPlace,
  runTraining,
  type StepMetrics,
  type Text,
  trainCheckpoint,
} from "../../engine/mod.ts";
import { meshSizes } from "../../spec/mesh.ts";
import type { DeviceFlags, PlanFlags } from "../flags.ts";
import type { CliIo } from "../io.ts";
import { locate } from "../located.ts";
import { stopFile } from "../mpi_job.ts";
import { createProgressBar } from "../progress.ts";
import { joinAsRank } from "../rank.ts";
import { begunLine } from "../rank_lines.ts";
import { readTextFile } from "../text_files.ts";
import {
  createTrainingBar,
  describeExperts,
  describeStep,
} from "../training_bar.ts";
import { recordOf } from "../step_record.ts";
import { openMetrics } from "../training_metrics.ts";
import { finishLine, UsageError } from "../values.ts";
import { startWatch } from "../watch.ts";
import { deviceOptions } from "./options.ts";
import {
  refuseSettings,
  savedSettings,
  type SettingFlags,
  settingsOf,
} from "./train_settings.ts";

/** Flags of `train`. */
export interface TrainFlags
  extends
    SettingFlags,
    DeviceFlags,
    Pick<PlanFlags, "mesh" | "place" | "family" | "revision"> {
  readonly data?: readonly string[];
  readonly validate?: readonly string[];
  readonly validateEvery?: number;
  readonly validateBatches?: number;
  readonly out: string;
  readonly steps: number;
  readonly saveEvery?: number;
  readonly zero?: NonNullable<PlanTrainingOptions["zero"]>;
  readonly metrics?: string;
  readonly resume?: boolean;
  readonly tokenizer?: string;
  readonly watch?: boolean;
  readonly json?: boolean;
}

/**
 * Trains and prints metrics. After the first step, Ctrl-C and SIGTERM end the training after the current step, which is
 * saved.
 */
export async function trainCommand(
  base: CliIo,
  name: string,
  flags: TrainFlags,
): Promise<number> {
  const { out, steps } = flags;
  if (flags.devices === "mpi") await joinAsRank(base, flags);
  const { io, model: what } = await locate(base, name, flags);
  const quiet = (rankPlace()?.rank ?? 0) > 0;
  const watch = await startWatch(
    io,
    `Training of ${what}, ${steps} steps`,
    flags,
  );
  const interrupted = new AbortController();
  const loading = createProgressBar(io);
  let release = () => {};
  const run = await startTraining(io, what, {
    ...flags,
    signal: interrupted.signal,
    onBegin: () => {
      if (flags.devices !== "mpi") {
        release = io.onInterrupt(() => {
          io.err(
            "Stopping after this step; interrupt again to stop immediately",
          );
          interrupted.abort();
        });
      } else if (flags.job !== undefined && !quiet) io.err(begunLine());
    },
    onProgress: (progress) => {
      loading.update(progress);
      watch.send("progress", progress);
    },
  });
  const bar = createTrainingBar(io, steps);
  const metrics = quiet ? undefined : openMetrics(io, flags);
  const recent: StepMetrics[] = [];
  try {
    for await (const step of run) {
      if (recent.length === 0) loading.stop();
      recent.push(step);
      if (recent.length > RECENT) recent.shift();
      const record = recordOf(step);
      const line = await metrics?.add(record);
      watch.send("step", record);
      if (!quiet && flags.json) await io.out(`${line}\n`);
      else if (!quiet) await bar.step(step);
      if (await isAskedToStop(io, flags)) interrupted.abort();
    }
    await metrics?.finish();
  } finally {
    loading.stop();
    bar.stop();
    release();
  }
  if (quiet) return 0;
  const text = ending(out, recent, steps);
  if (!flags.json) await io.out(text);
  if (flags.job !== undefined) await io.out(`${finishLine(flags.job)}\n`);
  await watch.end(text);
  return 0;
}

/** Returns whether 'launch' was asked to stop. All ranks stop after the same step if one of them has the request. */
async function isAskedToStop(
  io: CliIo,
  { job }: Pick<DeviceFlags, "job">,
): Promise<boolean> {
  return job !== undefined &&
    await io.files.stat(stopFile(job)) !== undefined;
}

/** Number of steps in the final report of expert load. The load of a single step varies much. */
const RECENT = 100;

function ending(
  out: string,
  recent: readonly StepMetrics[],
  steps: number,
): string {
  const last = recent.at(-1);
  if (last === undefined) return `Nothing to do: '${out}' has ${steps} steps\n`;
  const more = last.step < steps ? `; go on with --resume` : "";
  const lines = [
    describeStep(last),
    ...recent.length > 1 ? [describeExperts(recent)] : [],
    `Wrote '${out}'${more}`,
  ].filter((line) => line !== undefined);
  return `${lines.join("\n")}\n`;
}

async function startTraining(
  io: CliIo,
  what: string,
  flags: TrainFlags & {
    readonly signal: AbortSignal;
    readonly onBegin: () => void;
    readonly onProgress: Parameters<typeof trainCheckpoint>[2]["onProgress"];
  },
): Promise<AsyncIterable<StepMetrics>> {
  const { out, steps, saveEvery, mesh, place, resume = false } = flags;
  const { validateEvery, validateBatches, signal, onProgress } = flags;
  const { onBegin } = flags;
  const { zero } = flags;
  const options = {
    ...deviceOptions(io, flags),
    steps,
    out,
    now: io.now,
    resume,
    signal,
    onBegin,
    ...saveEvery === undefined ? {} : { saveEvery },
    ...zero === undefined ? {} : { zero },
    ...validateEvery === undefined ? {} : { validateEvery },
    ...validateBatches === undefined
      ? {}
      : { validationBatches: validateBatches },
    ...mesh ? { mesh: meshSizes(mesh) } : {},
    ...place ? { place } : {},
    ...onProgress ? { onProgress } : {},
  };
  const source = await io.files.stat(what) === "folder"
    ? what
    : await loadTrainedFile(what);
  if (typeof source !== "string" && !isFamily(source)) {
    const { data, validate, tokenizer } = flags;
    const on = {
      "--family": flags.family,
      "--data": data,
      "--validate": validate,
      "--tokenizer": tokenizer,
    };
    refuseSettings(flags, {
      beside: "a model file",
      because: "the file says how it is trained",
    });
    for (
      const [flag, given] of Object.entries(on)
    ) {
      if (given === undefined) continue;
      throw new UsageError(
        `Cannot use ${flag} with a model file: the file defines the training. Leave it out`,
      );
    }
    const declared = Object.values(source.mesh ?? {});
    return runTraining(source, io.files, {
      ...options,
      statistics: exchanges(flags, declared),
    });
  }
  if (flags.data === undefined) {
    throw new UsageError(
      `Cannot train '${what}' without data: it is a ${
        isFamily(source) ? "family" : "checkpoint"
      }. Give texts with --data`,
    );
  }
  const settings = resume
    ? await savedSettings(out, io.files, flags)
    : settingsOf(flags, steps);
  const { tokenizer, validate } = flags;
  const family = isFamily(source) ? source : await familyOf(flags.family);
  return trainCheckpoint(resume ? out : source, io.files, {
    ...settings,
    family,
    ...options,
    statistics: exchanges(flags, []),
    data: textsIn(io, flags.data),
    ...validate ? { validation: textsIn(io, validate) } : {},
    ...tokenizer === undefined ? {} : { tokenizer },
  });
}

/** Returns whether ranks exchange data. Counting bytes takes time. */
function exchanges(
  { mesh, devices }: TrainFlags,
  declared: readonly number[],
): boolean {
  const sizes = mesh?.map(({ size }) => size) ?? declared;
  return devices === "mpi" || sizes.some((size) => size > 1);
}

function textsIn(io: CliIo, paths: readonly string[]): Text[] {
  return paths.map((path) => () => readTextFile(path, io.files));
}
