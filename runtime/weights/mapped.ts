/** Weights whose memory layout equals that of their files: devices can map the files. */

import { indicesOn, sourceName, stackedOn } from "../../spec/axis_parts.ts";
import { buffersOf } from "../../spec/plan/accesses.ts";
import {
  maxOverRanks,
  onRank,
  type Plan,
  type PlanWeight,
} from "../../spec/plan/plan.ts";
import { sum } from "../../spec/sum.ts";
import type { DeviceBuffer, FileRun } from "../device.ts";
import { type FilePart, HostExperts } from "./expert_slots.ts";
import type { RankMemory } from "../memory.ts";
import type { TensorDirectory } from "./safetensors.ts";
import { weightForm } from "./form.ts";

/** Minimum bytes of a mapped buffer. */
const MIN_BYTES = 1 << 20;

/** A rank and its device. */
type Place = Pick<RankMemory, "device" | "rank">;

/** Parts of files for a rank. */
interface PlacedRuns {
  readonly on: Place;
  readonly runs: readonly FileRun[];
}

/**
 * Maps the weights of a rank whose layout equals that of their files, if the files have descriptors and the device can
 * map. The others must be read. Mapped weights are not checked for NaN or Inf.
 */
export function mapWeights(
  plan: Plan,
  weights: readonly PlanWeight[],
  on: Place,
  tensors: TensorDirectory,
): Map<string, DeviceBuffer> {
  const mapped = new Map<string, DeviceBuffer>();
  for (const weight of weights) {
    const buffer = mapWeight(plan, weight, on, tensors);
    if (buffer) mapped.set(weight.buffer, buffer);
  }
  return mapped;
}

function mapWeight(
  plan: Plan,
  weight: PlanWeight,
  on: Place,
  tensors: TensorDirectory,
): DeviceBuffer | undefined {
  const { device, rank } = on;
  const small = onRank(plan.buffers[weight.buffer]!.bytes, rank) < MIN_BYTES;
  if (!device.map || small && !device.streams) return undefined;
  const parts = completeParts(plan, weight, rank, tensors);
  const runs = parts && fileRuns(parts);
  if (!runs) return undefined;
  const streamed = () => streamExperts(plan, weight, { on, runs });
  return (device.streams ? streamed() : undefined) ??
    (small ? undefined : device.map(runs) ??
      mapExperts(plan, weight, { on, runs }) ?? streamed());
}

/** Maps experts that have no common layout in pages. Undefined if launches without a list of tiles use the weight. */
function mapExperts(
  plan: Plan,
  { buffer }: PlanWeight,
  { on: { device, rank }, runs }: PlacedRuns,
): DeviceBuffer | undefined {
  return streamable(plan).has(buffer)
    ? device.mapExperts?.(runs, expertsOf(plan, buffer, rank))
    : undefined;
}

/** Sets the experts of a weight in host memory to those in files. Returns false if they must be written instead. */
export function fileExperts(
  plan: Plan,
  weight: PlanWeight,
  memory: RankMemory,
  tensors: TensorDirectory,
): boolean {
  const buffer = memory.buffer(weight.buffer);
  if (!(buffer instanceof HostExperts)) return false;
  const parts = completeParts(plan, weight, memory.rank, tensors);
  return buffer.load(parts && partsOfExperts(parts, buffer.each));
}

/** The parts of files that form a weight of a rank. Undefined if its layout differs. */
function completeParts(
  plan: Plan,
  weight: PlanWeight,
  rank: number,
  tensors: TensorDirectory,
): readonly FilePart[] | undefined {
  const bytes = onRank(plan.buffers[weight.buffer]!.bytes, rank);
  const parts = fileParts(plan, weight, rank, tensors) ?? [];
  return sum(parts.map((part) => part.bytes)) === bytes ? parts : undefined;
}

/**
 * Memory of experts that are read when launches need them. Undefined if the weight is not streamable, or the device
 * cannot stream.
 */
function streamExperts(
  plan: Plan,
  { buffer }: PlanWeight,
  { on: { device, rank }, runs }: PlacedRuns,
): DeviceBuffer | undefined {
  if (!device.stream || !streamable(plan).has(buffer)) return undefined;
  const bytes = onRank(plan.buffers[buffer]!.bytes, rank) /
    expertsOf(plan, buffer, rank);
  return device.stream(partsOfExperts(runs, bytes));
}

/** Number of experts of a weight on a rank. */
function expertsOf(plan: Plan, buffer: string, rank: number): number {
  return onRank(plan.buffers[buffer]!.axes[0]!.size, rank);
}

/** The expert weights of a rank in host memory, before they are loaded, for launches with slots. */
export function hostExperts(
  plan: Plan,
  rank: number,
): Map<string, HostExperts> {
  return new Map(
    [...slottable(plan)].flatMap((name): [string, HostExperts][] => {
      const bytes = onRank(plan.buffers[name]!.bytes, rank);
      const experts = expertsOf(plan, name, rank);
      return bytes === 0 ? [] : [[name, new HostExperts(bytes, experts)]];
    }),
  );
}

/** Whether the first axis of a buffer numbers experts. */
function isByExpert(plan: Plan, name: string): boolean {
  const [first] = plan.buffers[name]!.axes;
  const axis = first && plan.axes[first.axis];
  return axis?.experts ?? plan.axes[axis?.of ?? ""]?.experts ?? false;
}

const streamableOf = new WeakMap<Plan, ReadonlySet<string>>();

/** Expert weights that only launches with a list of expert tiles use. */
function streamable(plan: Plan): ReadonlySet<string> {
  const known = streamableOf.get(plan);
  if (known) return known;
  const names = new Set(
    plan.weights.map(({ buffer }) => buffer)
      .filter((name) => isByExpert(plan, name)),
  );
  const isTiles = (name: string) => plan.buffers[name]!.routing === "tiles";
  for (const step of plan.programs.flatMap(({ steps }) => steps)) {
    const used = buffersOf(step);
    if (step.op === "launch" && used.some(isTiles)) continue;
    for (const name of used) names.delete(name);
  }
  streamableOf.set(plan, names);
  return names;
}

/**
 * Weights whose experts can be in any order. Their launches have no other buffers by expert, and find experts only in
 * the list of tiles.
 */
function slottable(plan: Plan): ReadonlySet<string> {
  const isWord = (name: string) => {
    const { axes, bytes } = plan.buffers[name]!;
    return maxOverRanks(bytes) / maxOverRanks(axes[0]!.size) % 4 === 0;
  };
  const names = new Set([...streamable(plan)].filter(isWord));
  const isOther = (name: string) =>
    !names.has(name) &&
    (isByExpert(plan, name) ||
      plan.buffers[name]!.axes[0]?.axis === "expertOf of routing");
  const launches = plan.programs.flatMap(({ steps }) =>
    steps.map((step) => buffersOf(step))
  );
  for (let size = Infinity; names.size < size;) {
    size = names.size;
    for (const used of launches) {
      if (!used.some(isOther)) continue;
      for (const name of used) names.delete(name);
    }
  }
  return names;
}

/** Bytes of the largest streamable expert of a rank, in all weights of a launch. */
export function largestExpert(plan: Plan, rank: number): number {
  const streamed = streamable(plan);
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
  const names = streamable(plan);
  return sum(
    plan.weights.map(({ buffer }) =>
      names.has(buffer)
        ? times(buffer) * onRank(plan.buffers[buffer]!.bytes, rank)
        : 0
    ),
  );
}

/** The parts of files that form a weight of a rank, in order. Undefined if its layout differs. */
function fileParts(
  plan: Plan,
  weight: PlanWeight,
  rank: number,
  tensors: TensorDirectory,
): FilePart[] | undefined {
  const { axes, stack, shape } = weight;
  const buffer = plan.buffers[weight.buffer]!;
  const order = stack === undefined ? axes : [stack, ...axes];
  if (buffer.rowStride !== undefined || !sameAxes(buffer.axes, order)) {
    return undefined;
  }
  const [outer, ...inner] = axes.map((axis, i) => {
    const held = indicesOn(plan, axis, rank);
    return { held, length: shape[i]! };
  });
  const isComplete = ({ held, length }: typeof inner[number]) =>
    !held || held.length === length && isRun(held);
  if (!outer || !inner.every(isComplete)) return undefined;
  if (outer.held && !isRun(outer.held, outer.held[0])) return undefined;
  const first = outer.held?.[0] ?? 0;
  const rows = outer.held?.length ?? outer.length;
  const indices = stack === undefined ? [0] : stackedOn(plan, weight, rank);
  const parts: FilePart[] = [];
  for (const index of indices) {
    const entry = tensors.get(sourceName(plan, weight, index));
    const form = entry && weightForm(weight, entry);
    if (!form || form === "bytes") return undefined;
    const { source } = entry;
    const rowBytes = entry.bytes / outer.length;
    const offset = entry.offset + first * rowBytes;
    const bytes = rows * rowBytes;
    const last = parts.at(-1);
    if (last?.source === source && last.offset + last.bytes === offset) {
      parts[parts.length - 1] = { ...last, bytes: last.bytes + bytes };
    } else parts.push({ source, offset, bytes });
  }
  return parts;
}

/** The same parts by descriptors. Undefined if a file has none. */
function fileRuns(parts: readonly FilePart[]): FileRun[] | undefined {
  const runs = parts.flatMap(({ source, offset, bytes }): FileRun[] => {
    const { name, descriptor } = source;
    return descriptor === undefined
      ? []
      : [{ name, descriptor, offset, bytes }];
  });
  return runs.length === parts.length ? runs : undefined;
}

/** Parts with several experts as one part for each. `bytes`: of an expert. */
function partsOfExperts<Part extends FilePart | FileRun>(
  parts: readonly Part[],
  bytes: number,
): Part[] {
  return parts.flatMap((part) =>
    Array.from({ length: Math.ceil(part.bytes / bytes) }, (_, i) => ({
      ...part,
      offset: part.offset + i * bytes,
      bytes,
    }))
  );
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
