/** `switchyard run`: run a model or a plan on tensors from a file. */

import {
  CHOICES,
  decoderShape,
  type Dropped,
  type HostTensor,
  needOf,
  openTarget,
  randomBatch,
  randomInputs,
  randomWeightParts,
  type RankStatistics,
  type RankTimes,
  rankTimes,
  readBatch,
  readInputs,
  readTensors,
  runOpened,
  type RunOptions,
  takeDropped,
  type Target,
  type Tensors,
  Tracer,
  writeSafetensors,
} from "../../engine/mod.ts";
import type { Plan } from "../../spec/mod.ts";
import type { CliIo } from "../io.ts";
import type { DeviceFlags, PlanFlags } from "../flags/flags.ts";
import { locate } from "../located.ts";
import { createProgressBar } from "../progress.ts";
import { formatTable } from "../table.ts";
import { finishLine, refuseFlags, UsageError } from "../flags/values.ts";
import { startWatch } from "../watch.ts";
import { joinAsRank } from "../launch/rank.ts";
import { openOptions, targetOf } from "./options.ts";

/** Flags of `run`. */
export interface RunFlags extends PlanFlags, DeviceFlags {
  readonly inputs?: string;
  readonly outputs?: string;
  readonly weights?: string;
  /** The seed of random inputs and weights. */
  readonly random?: number;
  readonly replay?: string;
  readonly trace?: string;
  readonly saveWeights?: string;
  readonly check?: boolean;
  readonly allowKernels?: boolean;
  readonly watch?: boolean;
  readonly json?: boolean;
}

/** Runs a target and writes its outputs. */
export async function runCommand(
  base: CliIo,
  name: string,
  flags: RunFlags,
): Promise<number> {
  const started = base.now();
  checkFlags(flags);
  if (flags.devices === "mpi") await joinAsRank(base, flags);
  const { random, revision } = flags;
  const { io, model } = await locate(base, name, {
    revision,
    extent: random === undefined ? "weights" : "headers",
  });
  const target = await targetOf(io, model, {
    family: flags.family,
    lora: flags.lora,
    withoutWeights: random !== undefined && flags.weights === undefined,
  });
  checkSaved(target, flags);
  if (target.kind !== "plan") {
    refuseFlags(
      { "--allow-kernels": flags.allowKernels },
      `with a ${target.kind}: its kernels are compiled from it. Leave it out`,
    );
  }
  const options = await openOptions(io, target, flags);
  const given = flags.inputs === undefined
    ? batchFor(target, random ?? 0)
    : await readInputs(flags.inputs, io.files, { target });
  const need = given && target.kind !== "model" && target.kind !== "plan"
    ? { need: needOf(readBatch(given)) }
    : {};
  if (flags.replay !== undefined && target.kind === "model") {
    throw new UsageError(
      "Cannot use --replay with a model file: it declares its own inputs. Pass 'choices' to 'route' in the file",
    );
  }
  const trace: RunOptions = flags.replay === undefined ? {} : {
    replay: await readTensors(
      flags.replay,
      io.files,
      { wanted: (name) => CHOICES.test(name) },
    ),
  };
  const bar = createProgressBar(io);
  const watch = await startWatch(io, `A run of ${model}`, flags);
  const tracer = flags.trace === undefined ? undefined : new Tracer(io.now);
  const opened = await openTarget(target, io.files, {
    ...options,
    ...need,
    ...flags.devices === "mpi"
      ? {
        equal: {
          "set of inputs": given ? writeSafetensors(given) : `${random}`,
          ...trace.replay
            ? { "trace of choices": writeSafetensors(trace.replay) }
            : {},
        },
      }
      : {},
    ...flags.weights === undefined ? {} : { weights: flags.weights },
    ...random === undefined ? {} : { random },
    ...tracer ? { tracer } : {},
    check: flags.check ?? false,
    ...target.kind === "plan" ? {} : { countDropped: true },
    allowKernels: flags.allowKernels ?? false,
    replay: flags.replay !== undefined,
    timestamps: tracer !== undefined,
    statistics: true,
    onProgress: (progress) => {
      bar.update(progress);
      watch.send("progress", progress);
    },
  }).finally(bar.stop);
  try {
    const loaded = io.now();
    const inputs = given ?? randomInputs(opened.plan, random ?? 0);
    const ranOutputs = await runOpened(opened, inputs, trace);
    const { outputs, dropped } = takeDropped(ranOutputs);
    const ran = io.now();
    const ranks = await opened.statistics();
    const events = await opened.trace();
    if (opened.rank > 0) {
      await opened.finish();
      return 0;
    }
    if (flags.outputs !== undefined) {
      await io.files.write(flags.outputs, [writeSafetensors(outputs)]);
    }
    if (flags.saveWeights !== undefined) {
      await io.files.write(
        flags.saveWeights,
        randomWeightParts(opened.plan, random ?? 0),
      );
    }
    if (events && flags.trace !== undefined) {
      const text = JSON.stringify(events);
      await io.files.write(flags.trace, [new TextEncoder().encode(text)]);
    }
    const timing = { loadMs: loaded - started, runMs: ran - loaded };
    const times = events ? { traced: rankTimes(events) } : {};
    const checked = flags.check ? checkedRoutings(opened.plan) : undefined;
    const document = {
      ranks: ranks.map(toJson),
      timing,
      ...times,
      ...dropped.length > 0 ? { dropped } : {},
      ...checked === undefined ? {} : { checkedRoutings: checked },
      ...random === undefined ? {} : { seed: random },
    };
    await io.out(
      flags.json
        ? `${JSON.stringify(document, null, 2)}\n`
        : describe(flags, outputs, ranks) + describeDropped(dropped) +
          describeChecked(checked) +
          describeTimes(times.traced),
    );
    await opened.finish();
    if (flags.job !== undefined) {
      await io.out(`${finishLine(flags.job)}\n`);
    }
    watch.send("ranks", ranks.map(liveRank));
    await watch.end(`The run took ${timing.runMs.toFixed(1)} ms.`);
    return 0;
  } finally {
    await opened.close();
  }
}

/** Throws UsageError for a run without inputs or without any visible result. */
function checkFlags({ inputs, outputs, random }: RunFlags): void {
  if (random !== undefined) return;
  for (const [flag, value] of Object.entries({ inputs, outputs })) {
    if (value !== undefined) continue;
    throw new UsageError(
      `Cannot run the model: --${flag} is missing. Give a file, or --random ${
        flag === "inputs" ? "for random inputs" : "to print a summary"
      }`,
    );
  }
}

/** Throws UsageError for saving weights that are not random. */
function checkSaved(
  target: Target,
  { saveWeights, random, weights }: RunFlags,
): void {
  if (saveWeights === undefined) return;
  if (
    random === undefined || weights !== undefined ||
    target.kind === "checkpoint"
  ) {
    throw new UsageError(
      "Cannot use --save-weights: the weights are not drawn. Give --random and no --weights, or leave it out",
    );
  }
}

/** Returns random token ids for a checkpoint or its configuration. Undefined for a target with inputs of its own. */
function batchFor(target: Target, seed: number): Tensors | undefined {
  if (target.kind === "plan") {
    const shape = decoderShape(target.plan);
    return shape?.gives === "logits"
      ? randomBatch(shape.vocabulary, seed)
      : undefined;
  }
  if (target.kind === "model") return undefined;
  const { published } = target.kind === "checkpoint"
    ? target.checkpoint
    : target.configuration;
  return randomBatch(published.decoder.vocabulary, seed);
}

/** Returns the number of routings of a plan with check steps. */
function checkedRoutings(plan: Plan): number {
  return plan.programs.flatMap(({ outputs }) => Object.keys(outputs))
    .filter((name) => /^check\.\d+$/.test(name)).length;
}

function describeDropped(dropped: readonly Dropped[]): string {
  return dropped.map((one) =>
    `routing ${one.routing}: dropped ${one.dropped} of ${one.chosen} choices of experts\n`
  ).join("");
}

function describeChecked(routings: number | undefined): string {
  if (routings === undefined) return "";
  return routings === 0
    ? "checked nothing: no tokens are dispatched\n"
    : `checked ${routings} ${
      routings === 1 ? "routing" : "routings"
    }: every choice of an expert returned to its token\n`;
}

/** Formats the time of each rank by kind of work. */
function describeTimes(times: readonly RankTimes[] | undefined): string {
  if (times === undefined) return "";
  const rows = times.map(({ rank, compute, exchange, wait, host }) => [
    `${rank}`,
    ...[compute, exchange, wait, host].map((ms) => ms.toFixed(2)),
  ]);
  const head = ["rank", "compute", "exchange", "wait", "host"];
  const table = formatTable([head, ...rows]);
  return `milliseconds of the traced run, which is slower than a plain one\n${
    table.map((line) => `  ${line}\n`).join("")
  }`;
}

/** Returns the state of a rank for the live page. */
function liveRank({ rank, peakBytes, sentBytes }: RankStatistics) {
  return {
    rank,
    peakBytes: peakBytes.actual,
    dispatchBytes: sentBytes.dispatch.actual,
    combineBytes: sentBytes.combine.actual,
  };
}

function toJson(rank: RankStatistics): object {
  const { peakBytes, stagingBytes, sentBytes } = rank;
  return { rank: rank.rank, peakBytes, stagingBytes, sentBytes };
}

/** Formats the minimum, mean and maximum of an output. */
function rangeText({ data }: HostTensor): string {
  let [min, max, sum] = [Infinity, -Infinity, 0];
  for (const x of data) {
    min = Math.min(min, x);
    max = Math.max(max, x);
    sum += x;
  }
  const [a, b, c] = [min, sum / data.length, max]
    .map((x) => Number(x.toPrecision(6)));
  return data.length === 0 ? "" : `, ${a} to ${c}, mean ${b}`;
}

function describe(
  { outputs: file, random }: RunFlags,
  outputs: Tensors,
  ranks: readonly RankStatistics[],
): string {
  const tensors = Object.entries(outputs).map(([name, tensor]) =>
    `  ${name} ${tensor.dtype} [${tensor.shape.join(", ")}]${
      random === undefined ? "" : rangeText(tensor)
    }`
  );
  const head = [
    ...random === undefined
      ? []
      : [`Drew missing weights and inputs from seed ${random}`],
    file === undefined ? "Outputs" : `Wrote ${file}`,
  ];
  const lines = ranks.map(({ rank, peakBytes, sentBytes }) =>
    `rank ${rank}: ${peakBytes.actual} bytes of memory, sent ${sentBytes.dispatch.actual} bytes in dispatch and ${sentBytes.combine.actual} in combine${
      sentBytes.gather.actual > 0
        ? `, ${sentBytes.gather.actual} to gather axes`
        : ""
    }`
  );
  return [...head, ...tensors, ...lines, ""].join("\n");
}
