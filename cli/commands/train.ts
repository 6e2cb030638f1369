/** `switchyard train`: train a checkpoint's model on text, or run the training that a model file declares. */

import {
  type ChatReport,
  type Chats,
  chatSteps,
  type Family,
  familyOf,
  isFamily,
  loadTrainedFile,
  openChats,
  type PlanTrainingOptions,
  rankIdentity,
  runTraining,
  type StepMetrics,
  type Text,
  trainCheckpoint,
  type Training,
  trainPolicy,
  type TrainSettings,
} from "../../engine/mod.ts";
import { meshSizes } from "../../spec/mesh.ts";
import type { DeviceFlags, PlanFlags } from "../flags/flags.ts";
import type { CliIo } from "../io.ts";
import { locate } from "../located.ts";
import { stopFile } from "../launch/mpi_job.ts";
import { createProgressBar } from "../progress.ts";
import { joinAsRank } from "../launch/rank.ts";
import { begunLine } from "../launch/rank_lines.ts";
import { readTextFile } from "../text_files.ts";
import {
  createTrainingBar,
  describeExperts,
  describeStep,
} from "../training_bar.ts";
import { recordOf } from "../step_record.ts";
import { openMetrics } from "../training_metrics.ts";
import { finishLine, refuseFlags, UsageError } from "../flags/values.ts";
import { startWatch } from "../watch.ts";
import { deviceOptions } from "./options.ts";
import {
  type GivenPolicy,
  givenPolicy,
  type PolicyFlags,
  refusePolicyFlags,
} from "./train_policy.ts";
import { refuseSettings, savedSettings, settingsOf } from "./train_settings.ts";

/** Flags of `train`. */
export interface TrainFlags extends
  PolicyFlags,
  DeviceFlags,
  Pick<
    PlanFlags,
    | "mesh"
    | "place"
    | "stages"
    | "pipeline"
    | "numerics"
    | "family"
    | "revision"
  > {
  readonly validateEvery?: number;
  readonly validateBatches?: number;
  readonly validateSplit?: number;
  readonly out: string;
  readonly steps?: number;
  readonly epochs?: number;
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
  const { out } = flags;
  if (flags.devices === "mpi") await joinAsRank(base, flags);
  const { io, model: what } = await locate(base, name, flags);
  const quiet = (rankIdentity()?.rank ?? 0) > 0;
  const given = await givenTraining(io, what, flags);
  const { steps } = given;
  const watch = await startWatch(
    io,
    `Training of ${what}, ${steps} steps`,
    flags,
  );
  const interrupted = new AbortController();
  const loading = createProgressBar(io);
  let release = () => {};
  let signal: number | undefined;
  const run = await startTraining(io, given, {
    ...flags,
    checkpoint: what,
    signal: interrupted.signal,
    onBegin: () => {
      if (flags.devices !== "mpi") {
        release = io.onInterrupt((number) => {
          signal = number;
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
  // Scripts must not continue with an incomplete training.
  const left = interrupted.signal.aborted && recent.at(-1)?.step !== steps;
  if (flags.job !== undefined) {
    await io.out(`${finishLine(flags.job, { left })}\n`);
  }
  await watch.end(text);
  return left && signal !== undefined ? 128 + signal : 0;
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

/** A training as given: of a model file, or of a checkpoint or family on data. */
type Given =
  & { readonly steps: number }
  & ({
    readonly training: Training;
  } | {
    readonly policy: GivenPolicy;
  } | {
    readonly source: string | Family;
    /** The family of the checkpoint, if it is not built in. A resumed family is a checkpoint too. */
    readonly family: Family | undefined;
    readonly settings: TrainSettings;
    readonly data: readonly Text[] | Chats;
  });

async function givenTraining(
  io: CliIo,
  what: string,
  flags: TrainFlags,
): Promise<Given> {
  const { resume = false, out } = flags;
  const source = await io.files.stat(what) === "folder"
    ? what
    : await loadTrainedFile(what);
  if (flags.reward === undefined) refusePolicyFlags(flags);
  const { validateEvery, validateBatches } = flags;
  if (validateEvery === undefined) {
    refuseFlags(
      { "--validate-batches": validateBatches },
      "without --validate-every: the last validation uses all batches. Give --validate-every",
    );
  }
  if (typeof source !== "string" && !isFamily(source)) {
    refuseSettings(flags, {
      beside: "a model file",
      because: "the file says how it is trained",
    });
    refuseFlags(
      {
        "--family": flags.family,
        "--reward": flags.reward,
        "--data": flags.data,
        "--validate": flags.validate,
        "--validate-split": flags.validateSplit,
        "--epochs": flags.epochs,
        "--tokenizer": flags.tokenizer,
      },
      "with a model file: the file defines the training. Leave it out",
    );
    if (source.validation === undefined) {
      refuseFlags(
        { "--validate-every": validateEvery },
        "with this file: its training has no validation. Leave it out, or add 'validation' to the file",
      );
    }
    return { training: source, steps: requiredSteps(flags) };
  }
  const { data, epochs } = flags;
  if (flags.reward !== undefined) {
    refuseFlags(
      {
        "--validate-split": flags.validateSplit,
        "--validate-every": validateEvery,
        "--tokenizer": flags.tokenizer,
      },
      "with --reward: samples are the data. Leave it out",
    );
    if (isFamily(source)) {
      throw new UsageError(
        "Cannot train a family with policy gradients: it has no weights to sample from. Give a checkpoint folder",
      );
    }
    const settings = resume
      ? await savedSettings(out, io.files, flags)
      : settingsOf(flags, flags.steps);
    const from = resumedFrom(source, { resume, out, settings });
    const policy = await givenPolicy(io, from, { flags, settings });
    return { policy, steps: requiredSteps(flags) };
  }
  if (data === undefined) {
    throw new UsageError(
      `Cannot train '${what}' without data: it is a ${
        isFamily(source) ? "family" : "checkpoint"
      }. Give texts with --data`,
    );
  }
  if (flags.validate === undefined && flags.validateSplit === undefined) {
    refuseFlags(
      { "--validate-every": validateEvery },
      "without --validate or --validate-split: there is no validation data. Give one of them",
    );
  }
  const settings = resume
    ? await savedSettings(out, io.files, flags)
    : settingsOf(flags, flags.steps);
  const from = resumedFrom(source, { resume, out, settings });
  const family = isFamily(source) ? source : await familyOf(flags.family);
  const text = { source: from, family, settings };
  if (!areChats(data)) {
    refuseFlags(
      {
        "--train-on": flags.trainOn,
        "--validate-split": flags.validateSplit,
        "--epochs": epochs,
        "--no-packing": flags.packing === false ? true : undefined,
      },
      "with texts: it is for conversations. Leave it out, or give .jsonl files",
    );
    const texts = textsIn(io, data);
    return { ...text, data: texts, steps: requiredSteps(flags) };
  }
  const chats = await chatsOf(io, from, { data, settings, flags, family });
  if (epochs === undefined) {
    return { ...text, data: chats, steps: requiredSteps(flags) };
  }
  const steps = chatSteps(chats, settings, epochs);
  const { schedule } = settings;
  const decayed = resume || schedule.decay !== undefined
    ? settings
    : { ...settings, schedule: { ...schedule, decay: steps } };
  return { ...text, settings: decayed, data: chats, steps };
}

/** The folder of the base weights. A checkpoint of adapters does not contain them. */
function resumedFrom<Source>(
  source: Source,
  { resume, out, settings }: {
    readonly resume: boolean;
    readonly out: string;
    readonly settings: TrainSettings;
  },
): Source | string {
  return resume && settings.lora === undefined ? out : source;
}

function requiredSteps({ steps, epochs }: TrainFlags): number {
  if (steps !== undefined && epochs === undefined) return steps;
  throw new UsageError(
    steps === undefined
      ? "Cannot train without a number of steps. Give --steps"
      : "Cannot use --epochs with --steps: each is the length of the training. Give one of them",
  );
}

/** Whether files have conversations, by their names. */
function areChats(files: readonly string[]): boolean {
  const chats = files.filter((file) => /\.jsonl(\.\w+)?$/i.test(file));
  if (chats.length === 0 || chats.length === files.length) {
    return chats.length > 0;
  }
  throw new UsageError(
    `Cannot train on '${
      chats[0]
    }' together with texts: it has conversations. Give files of one kind`,
  );
}

/** Reads conversations, and reports truncated and omitted ones. */
async function chatsOf(
  io: CliIo,
  source: string | Family,
  { data, settings, flags, family }: {
    readonly data: readonly string[];
    readonly settings: TrainSettings;
    readonly flags: TrainFlags;
    readonly family: Family | undefined;
  },
): Promise<Chats> {
  const { validate, validateSplit, tokenizer } = flags;
  const folder = typeof source === "string" ? source : tokenizer;
  if (folder === undefined) {
    throw new UsageError(
      "Cannot train a family on conversations: it has no chat template. Give the folder of one with --tokenizer",
    );
  }
  const filesIn = (paths: readonly string[]) =>
    paths.map((name) => ({ name, text: () => readTextFile(name, io.files) }));
  const { length, seed, trainOn } = settings;
  const chats = await openChats(folder, io.files, {
    data: filesIn(data),
    length,
    ...validate ? { validation: filesIn(validate) } : {},
    ...validateSplit === undefined ? {} : { split: validateSplit },
    ...trainOn === undefined ? {} : { trainOn },
    ...tokenizer === undefined ? {} : { tokenizer },
    ...seed === undefined ? {} : { seed },
    family,
  });
  if ((rankIdentity()?.rank ?? 0) === 0) {
    io.err(describeChats(chats.report, length));
  }
  return chats;
}

function describeChats(report: ChatReport, length: number): string {
  const { samples, validation, tokens, trained } = report;
  const { truncated, lost, untrained } = report;
  return [
    `${samples} conversations${
      validation > 0 ? `, ${validation} for validation` : ""
    }: ${tokens} tokens, ${trained} of them trained`,
    ...truncated > 0
      ? [`${truncated} truncated to ${length} tokens (${lost} tokens lost)`]
      : [],
    ...untrained > 0
      ? [`${untrained} left out: no token of them is trained`]
      : [],
  ].join("; ");
}

async function startTraining(
  io: CliIo,
  given: Given,
  flags: TrainFlags & {
    /** The given checkpoint, also if another folder is resumed. */
    readonly checkpoint: string;
    readonly signal: AbortSignal;
    readonly onBegin: () => void;
    readonly onProgress: Parameters<typeof trainCheckpoint>[2]["onProgress"];
  },
): Promise<AsyncIterable<StepMetrics>> {
  const { out, saveEvery, mesh, place, resume = false } = flags;
  const { stages, pipeline, numerics } = flags;
  const { validateEvery, validateBatches, signal, onProgress } = flags;
  const { onBegin } = flags;
  const { zero } = flags;
  const options = {
    ...deviceOptions(io, flags),
    steps: given.steps,
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
    ...stages === undefined ? {} : { stages },
    ...pipeline === undefined ? {} : { pipeline },
    ...numerics === undefined ? {} : { numerics },
    ...onProgress ? { onProgress } : {},
  };
  if ("training" in given) {
    const declared = Object.values(given.training.mesh ?? {});
    return runTraining(given.training, io.files, {
      ...options,
      statistics: exchanges(flags, declared),
    });
  }
  if ("policy" in given) {
    const { folder, settings, ...policy } = given.policy;
    const { rolloutMesh, kvCacheDtype = "f32", checkpoint } = flags;
    const { saveEvery = 1 } = flags;
    return trainPolicy(folder, io.files, {
      ...settings,
      ...policy,
      ...options,
      saveEvery,
      family: await familyOf(flags.family),
      statistics: exchanges(flags, []),
      ...rolloutMesh ? { rolloutMesh: meshSizes(rolloutMesh) } : {},
      ...kvCacheDtype === "f32" ? {} : { rolloutNumerics: { kvCacheDtype } },
      reference: checkpoint,
    });
  }
  const { source, family, settings, data } = given;
  const { tokenizer, validate } = flags;
  const texts = validate && !("samples" in data);
  return trainCheckpoint(source, io.files, {
    ...settings,
    family,
    ...options,
    statistics: exchanges(flags, []),
    data,
    ...texts ? { validation: textsIn(io, validate) } : {},
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
