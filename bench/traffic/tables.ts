/** Tables of counted steps, in Markdown. */

import { sum } from "../../spec/sum.ts";
import type { LaunchTraffic, StepTraffic } from "./step.ts";

/** A launch below its goal. */
export interface Missed {
  readonly launch: LaunchTraffic;
  /** Launches per step. */
  readonly times: number;
}

/** Goal: share of the bandwidth of launches that stream weights or the KV cache. */
const GOAL = 0.7;

/** Bytes of weights and states from which a launch counts as streaming; scales of norms are smaller. */
const STREAMED = 64 * 1024;

/** Launches that take most of a step's time. */
const LIMITING = 3;

/** Launches that stream weights or the KV cache below 0.7 of the bandwidth, in order of their time. */
export function missedOf({ layers }: StepTraffic): Missed[] {
  const missed = new Map<string, Missed>();
  for (const { times, launches } of layers) {
    for (const launch of launches) {
      if (launch.streamed < STREAMED || launch.share >= GOAL) continue;
      const key = JSON.stringify(launch);
      const known = missed.get(key)?.times ?? 0;
      missed.set(key, { launch, times: known + times });
    }
  }
  return [...missed.values()].sort((a, b) => timeOf(b) - timeOf(a));
}

function timeOf({ launch, times }: Missed): number {
  return times * launch.seconds;
}

/** The kernels that take most of a step, with their shares and limits: `attention (31 %, waiting), …`. */
export function limitingOf({ layers, seconds }: StepTraffic): string {
  const kernels = new Map<string, { seconds: number; by: string }>();
  for (const { times, launches } of layers) {
    for (const { kernel, seconds, by } of launches) {
      const known = kernels.get(kernel) ?? { seconds: 0, by };
      known.seconds += times * seconds;
      kernels.set(kernel, known);
    }
  }
  return [...kernels]
    .sort(([, a], [, b]) => b.seconds - a.seconds)
    .slice(0, LIMITING)
    .map(([name, of]) =>
      `${shortName(name)} (${percent(of.seconds / seconds)}, ${of.by})`
    )
    .join(", ");
}

/** A table of launches for each distinct layer. */
export function layerTables({ layers }: StepTraffic): string {
  return layers.map(({ name, times, launches }) =>
    [
      `## ${name}${times > 1 ? ` and ${times - 1} equal to it` : ""}: ${
        microseconds(sum(launches.map(({ seconds }) => seconds)))
      } µs, ${launches.length} launches`,
      "",
      ...markdownTable([
        [
          ...["launch", "workgroups × lanes", "KiB", "sector efficiency"],
          ...["bank passes", "divergence", "waits", "KiB in flight"],
          ...["of bandwidth", "bound by", "µs"],
        ],
        ...launches.map(launchRow),
      ]),
    ].join("\n")
  ).join("\n\n");
}

function launchRow(launch: LaunchTraffic): string[] {
  const { workgroups, lanes, bankPasses } = launch;
  return [
    shortName(launch.kernel),
    `${workgroups} × ${lanes}`,
    kibibytes(launch.bytes),
    percent(launch.efficiency),
    bankPasses === undefined ? "–" : bankPasses.toFixed(1),
    percent(launch.divergence),
    launch.waits.toFixed(0),
    kibibytes(launch.inFlight),
    percent(launch.share),
    launch.by,
    microseconds(launch.seconds),
  ];
}

/** Launch overhead, bytes and times of a step in one line. */
export function stepLine(step: StepTraffic): string {
  const { seconds, launches, bytes, arithmetic, matrices } = step;
  const { floor, memory, fits } = step;
  const halves = matrices.seconds === 0
    ? ""
    : `, matmuls of 16 bits ${milliseconds(matrices.seconds)} ms (${
      percent(matrices.arithmetic / matrices.seconds)
    } of that rate)`;
  return `step: ${milliseconds(seconds)} ms, ${launches} launches, ${
    (bytes / 1e9).toFixed(2)
  } GB, memory floor ${milliseconds(floor)} ms, multiply-adds ${
    milliseconds(arithmetic)
  } ms at the full rates of f32 and matrix units (${
    percent(arithmetic / seconds)
  })${halves}; the rank needs ${(memory / 2 ** 30).toFixed(1)} GiB${
    fits ? "" : ", more than the GPU has"
  }`;
}

/** A list of the launches of a step that miss their goal. */
export function missedLines(step: StepTraffic): string[] {
  return missedOf(step).map(({ launch, times }) =>
    `${times} × ${shortName(launch.kernel)}: ${
      percent(launch.share)
    } of bandwidth, ${
      microseconds(launch.seconds)
    } µs (${launch.by}; ${launch.workgroups} × ${launch.lanes}, ${
      kibibytes(launch.inFlight)
    } KiB in flight)`
  );
}

/** Lines of a Markdown table; the first row is its head. */
export function markdownTable(rows: readonly (readonly string[])[]): string[] {
  const [head, ...body] = rows.map((cells) => `| ${cells.join(" | ")} |`);
  return [head!, `|${" --- |".repeat(rows[0]!.length)}`, ...body];
}

/** A name of up to 40 characters: merged launches have long ones. */
function shortName(kernel: string): string {
  const [first, ...others] = kernel.split("_and_");
  return others.length === 0 ? first! : `${first} and ${others.length} more`;
}

/** Milliseconds with three digits. */
export function milliseconds(seconds: number): string {
  const ms = 1e3 * seconds;
  return ms.toFixed(ms < 10 ? 2 : ms < 100 ? 1 : 0);
}

function microseconds(seconds: number): string {
  return (1e6 * seconds).toFixed(1);
}

function kibibytes(bytes: number): string {
  return Math.round(bytes / 1024).toLocaleString("en-US");
}

/** Per cent of a share, with a decimal below 10 %. */
export function percent(share: number): string {
  const value = 100 * share;
  return `${value.toFixed(value > 0 && value < 9.95 ? 1 : 0)} %`;
}
