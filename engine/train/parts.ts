/** Assigns the parts of a training to writing ranks, and splits and joins tensors. */

import { heldIndices, type HostTensor, zeros } from "../../runtime/mod.ts";
import { onRank, type Plan } from "../../spec/plan/plan.ts";

/** Along each axis of a tensor, the global indices of a part, in order. Undefined: all. */
export type Held = readonly (Int32Array | undefined)[];

/** A block of a global tensor. */
export interface Slice {
  /** Its first index along each axis. */
  readonly start: readonly number[];
  readonly tensor: HostTensor;
}

/** Consecutive indices: their offset in a part, the first one, and their number. */
interface RunOfIndices {
  readonly at: number;
  readonly first: number;
  readonly length: number;
}

/** A block of a global tensor within a part: a range along each axis. */
export type Block = readonly RunOfIndices[];

/** The ranks that write a weight or state: one of those with the same shard, alternating. */
export function writersOf(plan: Plan, name: string, turn: number): number[] {
  const holders = new Map<string, number[]>();
  for (let rank = 0; rank < plan.ranks; rank++) {
    if (onRank(plan.buffers[name]!.bytes, rank) === 0) continue;
    const part = heldIndices(plan, { name, rank })
      .map((held) => held?.join() ?? "all").join(";");
    holders.set(part, [...holders.get(part) ?? [], rank]);
  }
  return [...holders.values()].map((ranks) => ranks[turn % ranks.length]!);
}

/** A part of a tensor as blocks: one, unless a rank's indices have gaps. */
export function blocksOf(shape: readonly number[], held: Held): Block[] {
  const runs = held.map((indices, axis) =>
    indices ? runsOf(indices) : [{ at: 0, first: 0, length: shape[axis]! }]
  );
  return runs.reduce<Block[]>(
    (blocks, runs) =>
      blocks.flatMap((block) => runs.map((run) => [...block, run])),
    [[]],
  );
}

/** The elements of a block. */
export function sliceBlock(
  { dtype, shape, data }: HostTensor,
  block: Block,
): HostTensor {
  const lengths = block.map(({ length }) => length);
  if (lengths.every((length, axis) => length === shape[axis])) {
    return { dtype, shape, data };
  }
  const result = zeros(dtype, lengths);
  let to = 0;
  const visit = (axis: number, from: number): void => {
    const run = block[axis];
    if (run === undefined) {
      result.data[to++] = data[from]!;
      return;
    }
    for (let i = 0; i < run.length; i++) {
      visit(axis + 1, from * shape[axis]! + run.at + i);
    }
  };
  visit(0, 0);
  return result;
}

/** Copies the elements of a block into a part. */
export function copySlice(
  part: HostTensor,
  held: Held,
  { start, tensor }: Slice,
): void {
  // Along each axis, the index in the part of each index of the block; -1: none.
  const targets = tensor.shape.map((length, axis) => {
    const indices = held[axis];
    return Int32Array.from(
      { length },
      (_, i) => indices?.indexOf(start[axis]! + i) ?? start[axis]! + i,
    );
  });
  const visit = (axis: number, from: number, to: number): void => {
    const found = targets[axis];
    if (found === undefined) {
      part.data[to] = tensor.data[from]!;
      return;
    }
    for (let i = 0; i < found.length; i++) {
      if (found[i]! < 0) continue;
      visit(
        axis + 1,
        from * found.length + i,
        to * part.shape[axis]! + found[i]!,
      );
    }
  };
  visit(0, 0, 0);
}

/** A part to be assembled. */
export function emptyPart(shape: readonly number[], held: Held): HostTensor {
  return zeros(
    "f32",
    shape.map((length, axis) => held[axis]?.length ?? length),
  );
}

/** Whether a part overlaps a block. */
export function overlaps(
  held: Held,
  start: readonly number[],
  shape: readonly number[],
): boolean {
  return held.every((indices, axis) =>
    indices === undefined ||
    indices.some((i) => i >= start[axis]! && i < start[axis]! + shape[axis]!)
  );
}

function runsOf(indices: Int32Array): RunOfIndices[] {
  const runs: RunOfIndices[] = [];
  for (let at = 0; at < indices.length;) {
    let end = at + 1;
    while (indices[end] === indices[at]! + end - at) end++;
    runs.push({ at, first: indices[at]!, length: end - at });
    at = end;
  }
  return runs;
}
