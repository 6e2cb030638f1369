/** Weights that are laid out in memory as in their files: devices that can have the files' own pages for memory. */

import { indicesOn, sourceName, stackedOn } from "../spec/axis_parts.ts";
import type { Plan, PlanWeight } from "../spec/plan/plan.ts";
import type { FileRun } from "./device.ts";
import type { RankMemory } from "./memory.ts";
import type { TensorDirectory } from "./safetensors.ts";
import { weightForm } from "./weight_form.ts";

/** Bytes of a buffer that is worth a mapping. */
const LEAST_BYTES = 1 << 20;

/**
 * Have the memory of a weight be that of its files. False where it is stored otherwise there, the files have no descriptor, or
 * the device cannot; then it has to be read. What is mapped has not been looked at: numbers in it may not be finite.
 */
export function mapWeight(
  plan: Plan,
  weight: PlanWeight,
  memory: RankMemory,
  tensors: TensorDirectory,
): boolean {
  const { device } = memory;
  const { bytes } = memory.buffer(weight.buffer);
  if (!device.map || bytes < LEAST_BYTES) return false;
  const runs = fileRuns(plan, weight, memory, tensors);
  if (runs?.reduce((n, run) => n + run.bytes, 0) !== bytes) return false;
  const mapped = device.map(runs);
  if (mapped) memory.replace(weight.buffer, mapped);
  return mapped !== undefined;
}

/** The parts of files that a weight of a rank consists of, in its order; undefined where it has another. */
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
  const isWhole = ({ held, length }: typeof inner[number]) =>
    !held || held.length === length && isRun(held);
  if (!outer || !inner.every(isWhole)) return undefined;
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
    if (descriptor === undefined || weightForm(weight, entry) !== "elements") {
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

/** Whether indices follow each other. */
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
