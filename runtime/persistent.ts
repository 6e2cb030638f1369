/** Parameters and states as tensors that a caller can read and write. */

import { isHalf } from "../spec/dtype.ts";
import { DataError, invariant } from "../spec/errors.ts";
import { onRank, type Plan, type Port } from "../spec/plan/plan.ts";
import { bytesOf, type HostTensor, words, zeros } from "./host_tensor.ts";
import { splitAxes } from "./inputs.ts";
import type { RankMemory } from "./memory.ts";
import { spanBytes, storedWords } from "./weights/stored.ts";
import {
  assignAxes,
  forEachRun,
  localSpan,
  type RunAxes,
  type SplitAxis,
} from "./shard.ts";

/** The port of a weight or state, in the axes of its buffer. */
export function persistentPort(plan: Plan, name: string): Port {
  const buffer = Object.hasOwn(plan.buffers, name)
    ? plan.buffers[name]
    : undefined;
  const persistent = buffer?.kind === "weight" || buffer?.kind === "state";
  if (!persistent || buffer.dtype !== "f32" && !isHalf(buffer.dtype)) {
    throw new DataError(
      `Cannot access '${name}': it is no weight or state of the plan that holds floats. See the plan for their names`,
    );
  }
  const axes = buffer.axes.map(({ axis }) => axis);
  return { buffer: name, dtype: "f32", axes };
}

/** Rejects a tensor of another shape. */
function checkPersistent(
  name: string,
  { dtype, shape, data }: HostTensor,
  wanted: readonly number[],
): void {
  const size = wanted.reduce((n, length) => n * length, 1);
  if (
    dtype === "f32" && shape.join() === wanted.join() && data.length === size
  ) return;
  throw new DataError(
    `Cannot set '${name}' to ${dtype} [${shape.join(", ")}]: it is f32 [${
      wanted.join(", ")
    }]. Give it so`,
  );
}

/** The sharding of fixed axes over the ranks; dynamic axes have no length. */
export function persistentAxes(plan: Plan): RunAxes {
  return assignAxes(plan, new Map(), {});
}

/** Along each axis of a weight or state, the global indices on a rank, in local order. Undefined: all. */
export function heldIndices(
  plan: Plan,
  { name, rank }: { readonly name: string; readonly rank: number },
): (Int32Array | undefined)[] {
  return splitPersistent(plan, name, rank).map(({ local }) => local);
}

/** A rank's shard of a weight or state, without padding. */
export async function readPersistentPart(
  plan: Plan,
  name: string,
  memory: RankMemory,
): Promise<HostTensor> {
  const split = splitPersistent(plan, name, memory.rank);
  const part = zeros("f32", split.map(heldLength));
  if (part.data.length === 0 || !memory.has(name)) return part;
  const { dtype } = memory.plan(name);
  const held = storedWords(
    dtype,
    await memory.device.read(
      memory.buffer(name),
      0,
      spanBytes(dtype, localSpan(split)),
    ),
  );
  const target = words(part);
  forEachRun(split.map(withoutGaps), (to, from, count) => {
    target.set(held.subarray(from, from + count), to);
  });
  return part;
}

/** Sets a rank's shard of a weight or state. */
export function writePersistentPart(
  plan: Plan,
  name: string,
  memory: RankMemory,
  part: HostTensor,
): void {
  const split = splitPersistent(plan, name, memory.rank);
  invariant(plan.buffers[name]!.dtype === "f32", `'${name}' is not in f32`);
  checkPersistent(name, part, split.map(heldLength));
  if (part.data.length === 0 || !memory.has(name)) return;
  const held = new Uint32Array(localSpan(split));
  const source = words(part);
  forEachRun(split.map(withoutGaps), (from, to, count) => {
    held.set(source.subarray(from, from + count), to);
  });
  memory.write(name, 0, bytesOf(held));
}

function splitPersistent(plan: Plan, name: string, rank: number): SplitAxis[] {
  const port = persistentPort(plan, name);
  const buffer = plan.buffers[name]!;
  const split = splitAxes(port, buffer, rank, persistentAxes(plan));
  // A rank of another stage has no indices.
  return onRank(buffer.bytes, rank) > 0
    ? split
    : split.map((axis) => ({ ...axis, local: new Int32Array(0) }));
}

function heldLength({ local, length }: SplitAxis): number {
  return local?.length ?? length;
}

/** The shard of a rank as a separate tensor in the same memory. */
function withoutGaps(axis: SplitAxis): SplitAxis {
  return { length: heldLength(axis), local: undefined, room: axis.room };
}
