/** Outputs of a run: tensors or some of their rows, joined from the ranks in the caller's order. */

import { concatenated } from "../spec/concatenated.ts";
import { DataError, invariant } from "../spec/errors.ts";
import type { Plan, Port, Program } from "../spec/plan/plan.ts";
import type { RemoteRanks } from "./exchange/communicator.ts";
import {
  elementCount,
  type HostTensor,
  tensorOf,
  words,
  wordsOf,
  zeros,
} from "./host_tensor.ts";
import { speaksFor, splitAxes } from "./inputs.ts";
import type { RankMemory } from "./memory.ts";
import {
  forEachRun,
  localSpan,
  type RunAxes,
  type SplitAxis,
} from "./shard.ts";
import { spanBytes, storedWords } from "./weights/stored.ts";

/** Memory of a rank with outputs. */
export type OutputMemory = Pick<RankMemory, "device" | "rank" | "buffer">;

/** Source of outputs after a run. */
export interface FinishedRun {
  readonly plan: Plan;
  /** Ranks of this process. */
  readonly ranks: readonly OutputMemory[];
  readonly axes: RunAxes;
  /** Access to ranks in other processes. */
  readonly remote: RemoteRanks | undefined;
  /** Whether every process receives outputs, not only that of rank 0. */
  readonly everywhere: boolean;
  /** Receives the reads from the ranks of this process: a later run must not start before they end. */
  readonly reads: Promise<unknown>[];
}

/**
 * Options of a run that computes all outputs of a program and reads none of their rows: for measurements. A run does
 * not execute launches that only other outputs than its own need. An output without axes is read.
 */
export function withoutRows(
  { outputs }: Program,
): { readonly rows: { readonly [output: string]: readonly number[] } } {
  return {
    rows: Object.fromEntries(
      Object.entries(outputs).flatMap(([name, { axes }]) =>
        axes.length > 0 ? [[name, []]] : []
      ),
    ),
  };
}

/** Reads an output. Undefined in a process that does not receive it. */
export async function readOutput(
  port: Port,
  from: FinishedRun,
): Promise<HostTensor | undefined> {
  const { plan, axes } = from;
  const gathered = gatheredOf(port, from);
  if (gathered) return await readPart(port, { from: 0, ...gathered }, from);
  const split = splitOnRanks(port, from);
  const { dtype } = plan.buffers[port.buffer]!;
  const lengths = split.map((axes, rank) =>
    speaksFor(plan, rank, port) ? spanBytes(dtype, localSpan(axes)) : 0
  );
  const parts = await readParts(lengths, from, async (memory) => {
    const bytes = lengths[memory.rank]!;
    return await memory.device.read(memory.buffer(port.buffer), 0, bytes);
  });
  if (!parts) return undefined;
  const result = zeros(port.dtype, port.axes.map((axis) => axes.length(axis)));
  const target = words(result);
  for (const [rank, bytes] of parts.entries()) {
    if (bytes.length === 0) continue;
    copyPart(target, storedWords(dtype, bytes), split[rank]!);
  }
  return result;
}

/**
 * Reads some rows of an output, by global index along its first axis, in the requested order. Undefined in a process
 * that does not receive them.
 */
export async function readRows(
  port: Port,
  rows: readonly number[],
  from: FinishedRun,
): Promise<HostTensor | undefined> {
  const { plan, axes } = from;
  const [first, ...rest] = port.axes;
  if (first === undefined) {
    throw new DataError(
      "Cannot read rows of an output: it has no axes. Read all of it",
    );
  }
  const length = axes.length(first);
  const outside = rows.find((row) => !(row >= 0 && row < length));
  if (outside !== undefined) {
    throw new DataError(
      `Cannot read row ${outside} of an output: axis '${first}' has length ${length}`,
    );
  }
  const gathered = gatheredOf(port, from);
  if (gathered && rows.length === 1) {
    const shape = [1, ...gathered.shape.slice(1)];
    return await readPart(port, { from: rows[0]!, shape }, from);
  }
  const split = splitOnRanks(port, from);
  const { dtype } = plan.buffers[port.buffer]!;
  invariant(dtype === port.dtype, "an output has its buffer's dtype");
  // By rank, the rows that it sends: their local and their global index.
  const held = split.map(([outer], rank) =>
    !speaksFor(plan, rank, port) ? [] : rows.flatMap((row, to) => {
      const at = outer!.local ? outer!.local.indexOf(row) : row;
      return at < 0 ? [] : [{ at, to }];
    })
  );
  const rowBytes = split.map(([, ...inner]) =>
    4 * inner.reduce((n, axis) => n * axis.room, 1)
  );
  const lengths = held.map((list, rank) => list.length * rowBytes[rank]!);
  const parts = await readParts(lengths, from, async (memory) => {
    const buffer = memory.buffer(port.buffer);
    const bytes = rowBytes[memory.rank]!;
    return concatenated(
      await Promise.all(
        held[memory.rank]!.map(({ at }) =>
          memory.device.read(buffer, at * bytes, bytes)
        ),
      ),
    );
  });
  if (!parts) return undefined;
  const shape = [rows.length, ...rest.map((axis) => axes.length(axis))];
  const result = zeros(port.dtype, shape);
  const target = words(result);
  for (const [rank, list] of held.entries()) {
    if (list.length === 0) continue;
    const [outer, ...inner] = split[rank]!;
    const local = Int32Array.from(list, ({ to }) => to);
    const picked = [{ ...outer!, length: rows.length, local }, ...inner];
    copyPart(target, wordsOf(parts[rank]!), picked);
  }
  return result;
}

/** Copies a rank's shard of an output to its global location. */
function copyPart(
  target: Uint32Array,
  part: Uint32Array,
  split: readonly SplitAxis[],
): void {
  forEachRun(split, (global, local, count) => {
    if (count === 1) target[global] = part[local]!;
    else target.set(part.subarray(local, local + count), global);
  });
}

/**
 * The shape of an output that a single rank stores in the returned layout, so that nothing has to be joined. Undefined
 * otherwise.
 */
function gatheredOf(
  port: Port,
  { plan, ranks, remote, axes }: FinishedRun,
): { readonly shape: readonly number[] } | undefined {
  const buffer = plan.buffers[port.buffer]!;
  if (remote || plan.ranks > 1 || buffer.dtype !== port.dtype) return undefined;
  const split = splitAxes(port, buffer, ranks[0]!.rank, axes);
  return split.every(({ local, length, room }, i) =>
      !local && (i === 0 || length === room)
    )
    ? { shape: split.map(({ length }) => length) }
    : undefined;
}

/** Reads such a tensor from the memory of the single rank, starting at a row. */
async function readPart(
  { buffer, dtype }: Port,
  { from, shape }: { readonly from: number; readonly shape: readonly number[] },
  { ranks: [memory], reads }: FinishedRun,
): Promise<HostTensor> {
  const rowBytes = 4 * elementCount(shape.slice(1));
  const bytes = (shape[0] ?? 1) * rowBytes;
  const { device } = memory!;
  const read = bytes === 0
    ? new Uint8Array()
    : device.read(memory!.buffer(buffer), from * rowBytes, bytes);
  if (read instanceof Promise) reads.push(read);
  return tensorOf(await read, { dtype, shape });
}

function splitOnRanks(port: Port, { plan, axes }: FinishedRun): SplitAxis[][] {
  const buffer = plan.buffers[port.buffer]!;
  return Array.from(
    { length: plan.ranks },
    (_, rank) => splitAxes(port, buffer, rank, axes),
  );
}

/** Reads the ranks' shards of an output, with lengths known to every process, and joins them. */
async function readParts(
  lengths: readonly number[],
  { ranks, remote, everywhere, reads }: FinishedRun,
  read: (memory: OutputMemory) => Promise<Uint8Array>,
): Promise<readonly Uint8Array[] | undefined> {
  const parts = Promise.all(
    ranks.map(async (memory) =>
      lengths[memory.rank] === 0 ? new Uint8Array(0) : await read(memory)
    ),
  );
  reads.push(parts);
  if (!remote) return await parts;
  // Called at once: processes must gather outputs in the same order.
  const part = parts.then(([first]) => first!);
  return await remote.gather(part, lengths, { everywhere });
}
