/** Tables of how placed axes are sharded over the ranks in one run, for kernels that bring them together and apart again. */

import { groupOf } from "../spec/mesh.ts";
import type { Plan, PlanBuffer } from "../spec/plan/plan.ts";
import { bytesOf } from "./host_tensor.ts";
import type { RankMemory } from "./memory.ts";
import type { Assigned, RunAxes } from "./shard.ts";

/** A buffer that the host fills with how an axis is assigned. */
export interface AssignmentBuffer
  extends Required<Pick<PlanBuffer, "name" | "assignment">> {
  /** The ranks of a rank's group, by group rank, of a table of counts; looked up once and not in every run. */
  group(rank: number): readonly number[];
}

/** The `assignment` buffers of a plan. */
export function assignmentBuffers({ buffers, mesh }: Plan): AssignmentBuffer[] {
  return Object.values(buffers).flatMap(({ name, assignment }) => {
    if (!assignment) return [];
    const groups = new Map<number, readonly number[]>();
    const group = (rank: number) => {
      const found = groups.get(rank) ??
        groupOf(mesh, rank, assignment.over ?? []);
      groups.set(rank, found);
      return found;
    };
    return [{ name, assignment, group }];
  });
}

/** Write `assignment` buffers of all ranks. */
export function writeAssignments(
  buffers: readonly AssignmentBuffer[],
  ranks: readonly RankMemory[],
  axes: RunAxes,
): void {
  for (const buffer of buffers) {
    const { name, assignment } = buffer;
    let words: Uint32Array | undefined;
    for (const memory of ranks) {
      // Only rows are the same on every rank.
      if (!words || assignment.holds !== "rows") {
        words = tableOf(buffer, memory.rank, axes);
      }
      if (words.length === 0) continue;
      memory.device.write(memory.buffer(name), 0, bytesOf(words));
    }
  }
}

/** The contents of an `assignment` buffer of a rank. */
export function tableOf(
  { assignment: { axis, holds, of }, group }: AssignmentBuffer,
  rank: number,
  axes: RunAxes,
): Uint32Array {
  switch (holds) {
    case "items": {
      const items = axes.local(axis, rank) ?? [];
      // Of a replicated axis, indices are global.
      const numbers = axes.numbers(of!);
      return Uint32Array.from(items, (item) => numbers?.[item] ?? item);
    }
    case "counts":
      return Uint32Array.from(
        group(rank),
        (other) => axes.local(axis, other)?.length ?? axes.length(axis),
      );
    case "rows":
      return rowsOf(axes.assigned(axis) ?? [], axes.length(axis));
  }
}

/** For each global index, its row where the parts are stored one after another. */
function rowsOf(parts: Assigned, length: number): Uint32Array {
  const rows = new Uint32Array(length);
  let row = 0;
  for (const part of parts) for (const index of part) rows[index] = row++;
  return rows;
}
