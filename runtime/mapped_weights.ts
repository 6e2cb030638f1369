/** Weights whose memory layout equals that of their files: devices can map the files. */

import { indicesOn, sourceName, stackedOn } from "../spec/axis_parts.ts";
import { buffersOf } from "../spec/plan/accesses.ts";
import { onRank, type Plan, type PlanWeight } from "../spec/plan/plan.ts";
import { sum } from "../spec/sum.ts";
import type { DeviceBuffer, FileRun } from "./device.ts";
import type { RankMemory } from "./memory.ts";
import type { TensorDirectory } from "./safetensors.ts";
import { weightForm } from "./weight_form.ts";

/** Minimum bytes of a mapped buffer. */
const MIN_BYTES = 1 << 20;

/**
 * Maps a weight. Returns false if its layout in the file differs, the files have no descriptor, or the device cannot
 * map; the weight must then be read. Mapped weights are not checked for NaN or Inf.
 */
export function mapWeight(
  plan: Plan,
  weight: PlanWeight,
  memory: RankMemory,
  tensors: TensorDirectory,
): boolean {
  const { device } = memory;
  const { bytes } = memory.buffer(weight.buffer);
  const small = bytes < MIN_BYTES;
  if (!device.map || small && !device.streams) return false;
  const runs = fileRuns(plan, weight, memory, tensors);
  if (runs?.reduce((n, run) => n + run.bytes, 0) !== bytes) return false;
  const streamed = () => streamExperts(plan, weight, { memory, runs });
  const found = (device.streams ? streamed() : undefined) ??
    (small ? undefined : device.map(runs) ?? streamed());
  if (found) memory.replace(weight.buffer, found);
  return found !== undefined;
}

/**
 * Memory of experts that are read when launches need them. Undefined if the weight has no experts, or is used in other
 * ways.
 */
function streamExperts(
  plan: Plan,
  { buffer }: PlanWeight,
  { memory, runs }: {
    readonly memory: RankMemory;
    readonly runs: readonly FileRun[];
  },
): DeviceBuffer | undefined {
  const { device, rank } = memory;
  if (!device.stream || !isStreamable(plan, buffer)) return undefined;
  const bytes = memory.buffer(buffer).bytes /
    onRank(plan.buffers[buffer]!.axes[0]!.size, rank);
  const experts = runs.flatMap((run) =>
    Array.from({ length: Math.ceil(run.bytes / bytes) }, (_, i) => ({
      name: run.name,
      descriptor: run.descriptor,
      offset: run.offset + i * bytes,
      bytes,
    }))
  );
  return device.stream(experts);
}

/** Whether a weight is used only by launches with a list of expert tiles. */
function isStreamable(plan: Plan, name: string): boolean {
  const [first] = plan.buffers[name]!.axes;
  const axis = first && plan.axes[first.axis];
  if (!(axis?.experts ?? plan.axes[axis?.of ?? ""]?.experts)) return false;
  const isTiles = (buffer: string) => plan.buffers[buffer]!.routing === "tiles";
  return plan.programs.every(({ steps }) =>
    steps.every((step) => {
      const used = buffersOf(step);
      return !used.includes(name) ||
        step.op === "launch" && used.some(isTiles);
    })
  );
}

/** Bytes of the largest streamable expert of a rank, in all weights of a launch. */
export function largestExpert(plan: Plan, rank: number): number {
  const streamed = new Set(
    plan.weights.map(({ buffer }) => buffer)
      .filter((name) => isStreamable(plan, name)),
  );
  const ofExpert = (name: string) => {
    const { bytes, axes } = plan.buffers[name]!;
    return onRank(bytes, rank) / onRank(axes[0]!.size, rank);
  };
  const launches = plan.programs.flatMap(({ steps }) =>
    steps.map((step) =>
      step.op !== "launch" ? 0 : sum(
        Object.values(step.bindings).filter((name) => streamed.has(name))
          .map(ofExpert),
      )
    )
  );
  return Math.max(0, ...launches);
}

/** Bytes of the streamable weights of a rank. `times`: number of buffers that one with this name represents. */
export function streamableBytes(
  plan: Plan,
  rank: number,
  times: (name: string) => number = () => 1,
): number {
  return sum(
    plan.weights.map(({ buffer }) =>
      isStreamable(plan, buffer)
        ? times(buffer) * onRank(plan.buffers[buffer]!.bytes, rank)
        : 0
    ),
  );
}

/** The parts of files that form a weight of a rank, in order. Undefined if its layout differs. */
function fileRuns(
  plan: Plan,
  weight: PlanWeight,
  memory: RankMemory,
  tensors: TensorDirectory,
): FileRun[] | undefined {
  const { axes, stack, shape } = weight;
  const buffer = memory.plan(weight.buffer);
  const order = stack === undefined ? axes : [stack, ...axes];
  if (buffer.rowStride !== undefined || !sameAxes(buffer.axes, order)) {
    return undefined;
  }
  const [outer, ...inner] = axes.map((axis, i) => {
    const held = indicesOn(plan, axis, memory.rank);
    return { held, length: shape[i]! };
  });
  const isComplete = ({ held, length }: typeof inner[number]) =>
    !held || held.length === length && isRun(held);
  if (!outer || !inner.every(isComplete)) return undefined;
  if (outer.held && !isRun(outer.held, outer.held[0])) return undefined;
  const first = outer.held?.[0] ?? 0;
  const rows = outer.held?.length ?? outer.length;
  const indices = stack === undefined
    ? [0]
    : stackedOn(plan, weight, memory.rank);
  const runs: FileRun[] = [];
  for (const index of indices) {
    const entry = tensors.get(sourceName(plan, weight, index))!;
    const { descriptor, name } = entry.source;
    const form = weightForm(weight, entry);
    if (descriptor === undefined || form === "bytes" || form === "halves") {
      return undefined;
    }
    const rowBytes = entry.bytes / outer.length;
    const offset = entry.offset + first * rowBytes;
    const bytes = rows * rowBytes;
    const last = runs.at(-1);
    if (
      last?.descriptor === descriptor && last.offset + last.bytes === offset
    ) {
      runs[runs.length - 1] = { ...last, bytes: last.bytes + bytes };
    } else runs.push({ name, descriptor, offset, bytes });
  }
  return runs;
}

/** Whether indices are consecutive. */
function isRun(indices: readonly number[], first = 0): boolean {
  return indices.every((index, i) => index === first + i);
}

function sameAxes(
  axes: readonly { readonly axis: string }[],
  order: readonly string[],
): boolean {
  return axes.length === order.length &&
    axes.every(({ axis }, i) => axis === order[i]);
}
