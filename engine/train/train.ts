/** Training a checkpoint's model on text: steps of one plan, and checkpoints in between. */

import {
  compileTraining,
  GRADIENT_NORM,
  STEP_INPUTS,
} from "../../compiler/mod.ts";
import { type HostTensor, tensorsInMemory } from "../../runtime/mod.ts";
import { DataError } from "../../spec/errors.ts";
import { assertLegal } from "../../spec/mod.ts";
import type { Plan } from "../../spec/plan.ts";
import {
  type Checkpoint,
  listWeightFiles,
  openConfiguration,
  openTokenizer,
} from "../checkpoint.ts";
import type { SelectDevicesOptions } from "../devices.ts";
import type { FileSystem } from "../files.ts";
import { readJsonObject } from "../json_file.ts";
import {
  compileOptions,
  type Opened,
  type OpenOptions,
  openPlan,
  type PlanOptions,
} from "../open.ts";
import { CHOICES } from "../replay.ts";
import type { Tensors } from "../run.ts";
import { readTensors } from "../tensors.ts";
import { initialWeights } from "./initial.ts";
import { readParameters, rememberedStates } from "./parameters.ts";
import {
  checkFolder,
  loadTraining,
  prepareFolder,
  type SavedTraining,
  saveTraining,
} from "./saved.ts";
import { checkSettings, rateAt, type TrainSettings } from "./settings.ts";
import { TextRows, tokenize } from "./text.ts";

/** Options of `train`. */
export interface TrainOptions
  extends
    TrainSettings,
    SelectDevicesOptions,
    Pick<PlanOptions, "mesh" | "place">,
    Pick<OpenOptions, "statistics" | "onProgress"> {
  /** Texts, one document each. */
  readonly data: readonly string[];
  /** Steps in all; those of a training that is gone on with count. */
  readonly steps: number;
  /** Folder for checkpoints. Default: none are written. */
  readonly out?: string;
  /** Steps from one checkpoint to the next. Default: only at the end. */
  readonly saveEvery?: number;
  /** Go on with what was saved in `out`. */
  readonly resume?: boolean;
  /** Folder of the tokenizer. Default: that of the model. */
  readonly tokenizer?: string;
  /** Ends training after the step that is under way; it is saved. */
  readonly signal?: AbortSignal;
  /** A clock in milliseconds. */
  readonly now: () => number;
}

/** What is known of a step. */
export interface StepMetrics {
  /** From 1. */
  readonly step: number;
  readonly loss: number;
  /** The part of the loss that is for next tokens, in nats per token. */
  readonly crossEntropy: number;
  /** The part that balances experts, before its weight; undefined without experts. */
  readonly auxiliary: number | undefined;
  readonly gradientNorm: number;
  readonly rate: number;
  readonly tokens: number;
  readonly tokensPerSecond: number;
  /** Of each layer with experts, the share of choices that each expert got. */
  readonly experts: readonly (readonly number[])[];
  /** Bytes that ranks of this process sent to others. */
  readonly sentBytes: number;
  /** A checkpoint was written after it. */
  readonly saved: boolean;
}

/**
 * Train the model of a checkpoint folder; without weights in it, from random ones. Gives the metrics of each step once it
 * is done, and a checkpoint has been written if one is due. What is saved is a checkpoint folder like any other, and holds
 * what is needed to go on as if training had never stopped.
 *
 * @example
 * ```ts
 * const metrics = train("examples/demo-lm", files, {
 *   data: [text], steps: 100, batch: 8, length: 128,
 *   optimizer: adamW(), schedule: { rate: 1e-3, warmup: 10, decay: 100 },
 *   out: "trained", adapter: "auto", now: () => performance.now(),
 * });
 * for await (const { step, loss } of metrics) console.log(step, loss);
 * ```
 */
export async function* train(
  folder: string,
  files: FileSystem,
  options: TrainOptions,
): AsyncGenerator<StepMetrics, void, undefined> {
  checkSettings(options);
  const run = await openTraining(folder, files, options);
  const { opened } = run;
  const { steps, saveEvery, out, signal } = options;
  try {
    let saved = run.step;
    const save = async (step: number) => {
      if (out === undefined || saved === step) return;
      saved = step;
      const training = await readSaved(run, step);
      if (opened.rank === 0) await saveTraining(out, files, training);
    };
    for (let step = run.step + 1; step <= steps && !signal?.aborted; step++) {
      const metrics = await takeStep(run, step, options.now);
      const due = saveEvery !== undefined && step % saveEvery === 0;
      if (due || step === steps || signal?.aborted) await save(step);
      run.step = step;
      yield { ...metrics, saved: saved === step };
    }
    // Whoever asks to stop between two steps.
    await save(run.step);
    await opened.finish();
  } finally {
    await opened.close();
  }
}

/** A training that is loaded. */
interface Run {
  readonly opened: Opened;
  readonly rows: TextRows;
  readonly settings: Settled;
  /** What tells the text from others. */
  readonly text: string;
  /** Steps taken. */
  step: number;
  /** Bytes sent until then. */
  sent: number;
}

async function openTraining(
  folder: string,
  files: FileSystem,
  options: TrainOptions,
): Promise<Run> {
  const { out, resume = false, seed = 0, length } = options;
  const checkpoint = await openConfiguration(folder, files);
  const from = { folder, tokenizer: options.tokenizer ?? folder };
  const tokenizer = await openTokenizer(from.tokenizer, files);
  if (tokenizer === undefined) {
    throw new DataError(
      `Cannot train on text: '${from.tokenizer}' has no tokenizer.json. Copy one there, or give the folder of another with --tokenizer`,
    );
  }
  const [between] = checkpoint.stop;
  const tokens = tokenize(tokenizer, options.data, between);
  const rows = new TextRows(tokens, { length, seed });
  const text = await rows.digest();
  const config = await readJsonObject(files.join(folder, "config.json"), files);
  const settings = settingsOf(options, config);
  const before = resume ? await loadTraining(out ?? folder, files) : undefined;
  if (before) checkSame(folder, before, { text, settings });
  else if (out !== undefined) await checkFolder(out, files);
  const initial = async (plan: Plan) =>
    before?.parameters ?? await storedWeights(folder, files) ??
      initialWeights(plan, {
        seed,
        deviation: Number(config["initializer_range"] ?? 0.02),
      });
  const opened = await openPlan({
    plan: (chosen) => planTraining(checkpoint, settings, chosen),
    tensors: async (plan) => tensorsInMemory(await initial(plan), folder),
    where: folder,
  }, {
    ...options,
    alike: { text, "way of training": canonical(settings) },
  });
  try {
    if (before) opened.session.write(before.remembered);
    else if (out !== undefined && opened.rank === 0) {
      await prepareFolder(out, files, from);
    }
  } catch (error) {
    await opened.close();
    throw error;
  }
  const { step = 0 } = before ?? {};
  return { opened, rows, settings, text, step, sent: 0 };
}

/** The weights of a folder as they are computed with; undefined where it has none. */
async function storedWeights(
  folder: string,
  files: FileSystem,
): Promise<Tensors | undefined> {
  const names = await files.list(folder);
  if (!names.some((name) => name.endsWith(".safetensors"))) return undefined;
  const read: { [name: string]: HostTensor } = {};
  for (const path of await listWeightFiles(folder, files)) {
    Object.assign(read, await readTensors(path, files));
  }
  return read;
}

async function planTraining(
  { published }: Pick<Checkpoint, "published">,
  { batch, length, optimizer, clipNorm, auxiliary }: Settled,
  options: PlanOptions,
): Promise<Plan> {
  const { maxPositions } = published.decoder;
  if (length > maxPositions) {
    throw new DataError(
      `Cannot train on sequences of ${length} tokens: the model has ${maxPositions} positions. Use shorter ones`,
    );
  }
  const model = published.build({
    ...{ maxTokens: batch * length, maxSequences: batch, maxContext: length },
    training: { auxiliary },
  });
  const plan = await compileTraining(model, {
    ...compileOptions(options),
    ...{ loss: "loss", optimizer },
    ...clipNorm === undefined ? {} : { clipNorm },
  });
  assertLegal(plan);
  return plan;
}

/** Settings with nothing left open. */
type Settled =
  & TrainSettings
  & Required<Pick<TrainSettings, "auxiliary" | "seed">>;

function settingsOf(
  { optimizer, schedule, clipNorm, batch, length, ...rest }: TrainOptions,
  config: { readonly [key: string]: unknown },
): Settled {
  const { seed = 0, auxiliary } = rest;
  return {
    ...{ optimizer, schedule, batch, length, seed },
    ...clipNorm === undefined ? {} : { clipNorm },
    auxiliary: auxiliary ?? Number(config["router_aux_loss_coef"] ?? 0.01),
  };
}

/** Refuse to go on with another text or other settings: the result would be neither the one nor the other. */
function checkSame(
  folder: string,
  before: SavedTraining,
  { text, settings }: { readonly text: string; readonly settings: Settled },
): void {
  if (before.text !== text) {
    throw new DataError(
      `Cannot go on with '${folder}': its text was another one. Give the same --data, in the same order`,
    );
  }
  const old: { readonly [name: string]: unknown } = { ...before.settings };
  const now: { readonly [name: string]: unknown } = { ...settings };
  for (const name of new Set([...Object.keys(old), ...Object.keys(now)])) {
    const [was, is] = [canonical(old[name]), canonical(now[name])];
    if (was === is) continue;
    throw new DataError(
      `Cannot go on with '${folder}': '${name}' was ${was}, and is ${is}. Leave it as it was, or start a new training from the checkpoint`,
    );
  }
}

/** A value as text, whatever the order of its keys. */
function canonical(value: unknown): string {
  return JSON.stringify(
    value,
    (_, part: unknown) =>
      typeof part === "object" && part !== null && !Array.isArray(part)
        ? Object.fromEntries(
          Object.entries(part).sort(([a], [b]) => a < b ? -1 : 1),
        )
        : part,
  ) ?? "not given";
}

async function readSaved(
  { opened: { plan, session }, settings, text }: Run,
  step: number,
): Promise<SavedTraining> {
  return {
    ...{ step, position: step * settings.batch, text, settings },
    parameters: await readParameters(plan, session),
    remembered: await session.read(rememberedStates(plan, settings.optimizer)),
  };
}

async function takeStep(
  run: Run,
  step: number,
  now: () => number,
): Promise<Omit<StepMetrics, "saved">> {
  const { opened: { plan, session }, settings } = run;
  const program = plan.programs[0]!;
  const rate = rateAt(settings.schedule, step);
  const numbers: { [name: string]: HostTensor } = {};
  for (
    const [name, value] of [[STEP_INPUTS.rate, rate], [
      STEP_INPUTS.step,
      step,
    ]] as const
  ) {
    if (!(name in program.inputs)) continue;
    numbers[name] = { dtype: "f32", shape: [], data: Float32Array.of(value) };
  }
  const layers = Object.keys(program.outputs).filter((name) =>
    CHOICES.test(name)
  );
  const named = [...LOSSES, GRADIENT_NORM].filter((name) =>
    name in program.outputs
  );
  const started = now();
  const outputs = await session.run(program.name, {
    ...batchOf(run, step),
    ...numbers,
  }, { outputs: [...named, ...layers], everywhere: true });
  const seconds = (now() - started) / 1000;
  const [loss, crossEntropy, auxiliary, gradientNorm] = [
    ...LOSSES,
    GRADIENT_NORM,
  ].map((name) => outputs[name]?.data[0]);
  if (!Number.isFinite(loss) || !Number.isFinite(gradientNorm)) {
    throw new DataError(
      `Cannot go on training: in step ${step} the loss is ${loss} and the norm of its gradients ${gradientNorm}. Go on from the last checkpoint with a lower learning rate, or clip gradients`,
    );
  }
  const tokens = settings.batch * settings.length;
  const sent = session.statistics().ranks.flatMap(({ sentBytes }) =>
    Object.values(sentBytes).map(({ actual }) => actual)
  ).reduce((n, bytes) => n + bytes, 0);
  const sentBytes = sent - run.sent;
  run.sent = sent;
  const experts = plan.axes["expert"]?.size ?? 0;
  return {
    ...{ step, rate, tokens, sentBytes, auxiliary },
    loss: loss!,
    crossEntropy: crossEntropy!,
    gradientNorm: gradientNorm!,
    tokensPerSecond: tokens / seconds,
    experts: layers.map((name) => shares(outputs[name]!.data, experts)),
  };
}

/** Outputs of a model that is trained. */
const LOSSES = ["loss", "ce_loss", "aux_loss"] as const;

/** The share of each expert in the choices of a layer. */
function shares(choices: ArrayLike<number>, experts: number): number[] {
  const counts = new Array<number>(experts).fill(0);
  for (let i = 0; i < choices.length; i++) counts[choices[i]!]!++;
  return counts.map((count) => count / choices.length);
}

/** The sequences of a step as inputs. */
function batchOf({ rows, settings }: Run, step: number): Tensors {
  const { batch, length } = settings;
  const inputs = {
    ids: new Int32Array(batch * length),
    labels: new Int32Array(batch * length),
    sequence: Int32Array.from(
      { length: batch * length },
      (_, i) => Math.floor(i / length),
    ),
    position: Int32Array.from({ length: batch * length }, (_, i) => i % length),
  };
  for (let i = 0; i < batch; i++) {
    const { ids, labels } = rows.at((step - 1) * batch + i);
    inputs.ids.set(ids, i * length);
    inputs.labels.set(labels, i * length);
  }
  return Object.fromEntries(
    Object.entries(inputs).map(([name, data]) => [
      name,
      { dtype: "i32", shape: [data.length], data },
    ]),
  );
}
