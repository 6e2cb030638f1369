/** Outputs of a run: whole tensors or some rows of them, joined from the ranks in the caller's order. */

import { DataError } from "../spec/errors.ts";
import type { Plan, Port } from "../spec/plan.ts";
import {
  bytesOf,
  type HostTensor,
  words,
  wordsOf,
  zeros,
} from "./host_tensor.ts";
import { speaksFor, splitAxes } from "./inputs.ts";
import type { RankMemory } from "./memory.ts";
import { forEachRun, localSpan, type RunAxes } from "./shard.ts";

/** Where outputs lie after a run. */
export interface FinishedRun {
  readonly plan: Plan;
  readonly ranks: readonly RankMemory[];
  readonly axes: RunAxes;
}

/** Read a whole output. */
export async function readOutput(
  port: Port,
  from: FinishedRun,
): Promise<HostTensor> {
  const { plan, ranks, axes } = from;
  const result = zeros(port.dtype, port.axes.map((axis) => axes.length(axis)));
  const target = words(result);
  await Promise.all(
    ranks.filter(({ rank }) => speaksFor(plan, rank, port)).map(
      async (memory) => {
        const split = splitAxes(port, memory, axes);
        const bytes = 4 * localSpan(split);
        if (bytes === 0) return;
        const part = wordsOf(
          await memory.device.read(memory.buffer(port.buffer), 0, bytes),
        );
        forEachRun(split, (global, local, count) => {
          if (count === 1) target[global] = part[local]!;
          else target.set(part.subarray(local, local + count), global);
        });
      },
    ),
  );
  return result;
}

/** Read some rows of an output, by global index along its first axis, in the order asked for. */
export async function readRows(
  port: Port,
  rows: readonly number[],
  from: FinishedRun,
): Promise<HostTensor> {
  const { plan, ranks, axes } = from;
  const [first, ...rest] = port.axes;
  if (first === undefined) {
    throw new DataError(
      "Cannot read rows of an output: it has no axes. Read it whole",
    );
  }
  const length = axes.length(first);
  const outside = rows.find((row) => !(row >= 0 && row < length));
  if (outside !== undefined) {
    throw new DataError(
      `Cannot read row ${outside} of an output: axis '${first}' has length ${length}`,
    );
  }
  const shape = [rows.length, ...rest.map((axis) => axes.length(axis))];
  const result = zeros(port.dtype, shape);
  const target = bytesOf(words(result));
  await Promise.all(
    ranks.filter(({ rank }) => speaksFor(plan, rank, port)).map(
      async (memory) => {
        const [outer, ...inner] = splitAxes(port, memory, axes);
        if (inner.some((axis) => axis.local || axis.length !== axis.room)) {
          throw new Error("internal: rows of an output that is split inside");
        }
        const rowBytes = 4 * inner.reduce((n, axis) => n * axis.room, 1);
        await Promise.all(rows.map(async (row, i) => {
          const at = outer!.local ? outer!.local.indexOf(row) : row;
          if (at < 0) return;
          const part = await memory.device.read(
            memory.buffer(port.buffer),
            at * rowBytes,
            rowBytes,
          );
          target.set(part, i * rowBytes);
        }));
      },
    ),
  );
  return result;
}
