/** Tables of the sharding of placed axes in one run, for kernels that gather and slice them. */

import { groupOf } from "../spec/mesh.ts";
import type { Plan, PlanBuffer } from "../spec/plan/plan.ts";
import { bytesOf } from "./host_tensor.ts";
import type { RankMemory } from "./memory.ts";
import type { Assigned, RunAxes } from "./shard.ts";

/** A buffer that the host fills with the assignment of an axis. */
export interface AssignmentBuffer
  extends Required<Pick<PlanBuffer, "name" | "assignment">> {
  /** The ranks of a rank's group, by group rank, for a table of counts; cached. */
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

/** Writes the `assignment` buffers of all ranks. */
export function writeAssignments(
  buffers: readonly AssignmentBuffer[],
  ranks: readonly RankMemory[],
  axes: RunAxes,
): void {
  for (const buffer of buffers) {
    const { name, assignment } = buffer;
    let words: Uint32Array | undefined;
    for (const memory of ranks) {
      if (!memory.has(name)) continue;
      // Only rows are equal on all ranks.
      if (!words || assignment.holds !== "rows") {
        words = tableOf(buffer, memory.rank, axes);
      }
      if (words.length === 0) continue;
      memory.write(name, 0, bytesOf(words));
    }
  }
}

/** The contents of an `assignment` buffer on a rank. */
export function tableOf(
  { assignment: { axis, holds, of }, group }: AssignmentBuffer,
  rank: number,
  axes: RunAxes,
): Uint32Array {
  switch (holds) {
    case "items": {
      const items = axes.local(axis, rank) ?? [];
      // Indices of a replicated axis are global.
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

/** For each global index, its row in the concatenation of the parts. */
function rowsOf(parts: Assigned, length: number): Uint32Array {
  const rows = new Uint32Array(length);
  let row = 0;
  for (const part of parts) for (const index of part) rows[index] = row++;
  return rows;
}
