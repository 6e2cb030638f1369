/** `switchyard run`: carry a model or a plan out on tensors from a file. */

import {
  loadTarget,
  needOf,
  openTarget,
  type RankStatistics,
  type RankTimes,
  rankTimes,
  readBatch,
  readTensors,
  runOpened,
  type RunOptions,
  type Tensors,
  Tracer,
  writeSafetensors,
} from "../../engine/mod.ts";
import type { CliIo } from "../io.ts";
import type { DeviceFlags, PlanFlags } from "../flags.ts";
import { createProgressBar } from "../progress.ts";
import { formatTable } from "../table.ts";
import { finishLine, UsageError } from "../values.ts";
import { joinAsRank } from "../rank.ts";
import { openOptions } from "./options.ts";

/** Flags of `run`. */
export interface RunFlags extends PlanFlags, DeviceFlags {
  readonly inputs: string;
  readonly outputs: string;
  readonly weights?: string;
  readonly replay?: string;
  readonly trace?: string;
  readonly check?: boolean;
  readonly allowKernels?: boolean;
  readonly json?: boolean;
}

/** Run a target and write its outputs. */
export async function runCommand(
  io: CliIo,
  model: string,
  flags: RunFlags,
): Promise<number> {
  const started = io.now();
  if (flags.devices === "mpi") await joinAsRank(io, flags);
  const target = await loadTarget(model, io.files);
  const options = await openOptions(io, target, flags);
  const inputs = await readTensors(flags.inputs, io.files);
  const need = target.kind === "checkpoint"
    ? { need: needOf(readBatch(inputs)) }
    : {};
  if (flags.replay !== undefined && target.kind === "model") {
    throw new UsageError(
      "Cannot use --replay with a model file: its inputs are its own. Give 'choices' to 'route' in the file",
    );
  }
  const trace: RunOptions = flags.replay === undefined
    ? {}
    : { replay: await readTensors(flags.replay, io.files) };
  const bar = createProgressBar(io);
  const tracer = flags.trace === undefined ? undefined : new Tracer(io.now);
  const opened = await openTarget(target, io.files, {
    ...options,
    ...need,
    ...flags.devices === "mpi"
      ? {
        alike: {
          "set of inputs": writeSafetensors(inputs),
          ...trace.replay
            ? { "trace of choices": writeSafetensors(trace.replay) }
            : {},
        },
      }
      : {},
    ...flags.weights === undefined ? {} : { weights: flags.weights },
    ...tracer ? { tracer } : {},
    check: flags.check ?? false,
    allowKernels: flags.allowKernels ?? false,
    replay: flags.replay !== undefined,
    timestamps: tracer !== undefined,
    statistics: true,
    onProgress: bar.update,
  }).finally(bar.stop);
  try {
    const loaded = io.now();
    const outputs = await runOpened(opened, inputs, trace);
    const ran = io.now();
    const ranks = await opened.statistics();
    const events = await opened.trace();
    if (opened.rank > 0) {
      await opened.finish();
      return 0;
    }
    await io.files.write(flags.outputs, [writeSafetensors(outputs)]);
    if (events && flags.trace !== undefined) {
      const text = JSON.stringify(events);
      await io.files.write(flags.trace, [new TextEncoder().encode(text)]);
    }
    const timing = { loadMs: loaded - started, runMs: ran - loaded };
    const times = events ? { traced: rankTimes(events) } : {};
    const document = { ranks: ranks.map(toJson), timing, ...times };
    await io.out(
      flags.json
        ? `${JSON.stringify(document, null, 2)}\n`
        : describe(flags.outputs, outputs, ranks) + describeTimes(times.traced),
    );
    await opened.finish();
    if (flags.job !== undefined) {
      await io.out(`${finishLine(flags.job)}\n`);
    }
    return 0;
  } finally {
    await opened.close();
  }
}

/** Where the time of each rank went. */
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

function toJson(rank: RankStatistics): object {
  const { peakBytes, stagingBytes, sentBytes } = rank;
  return { rank: rank.rank, peakBytes, stagingBytes, sentBytes };
}

function describe(
  file: string,
  outputs: Tensors,
  ranks: readonly RankStatistics[],
): string {
  const tensors = Object.entries(outputs).map(([name, { dtype, shape }]) =>
    `  ${name} ${dtype} [${shape.join(", ")}]`
  );
  const lines = ranks.map(({ rank, peakBytes, sentBytes }) =>
    `rank ${rank}: ${peakBytes.actual} bytes of memory, sent ${sentBytes.dispatch.actual} bytes in dispatch and ${sentBytes.combine.actual} in combine${
      sentBytes.gather.actual > 0
        ? `, ${sentBytes.gather.actual} to make axes whole`
        : ""
    }`
  );
  return [`Wrote ${file}`, ...tensors, ...lines, ""].join("\n");
}
