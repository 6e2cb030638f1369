/** Tables of the sharding of placed axes in one run, for kernels that gather and slice them. */

import { groupOf, groupRankOf } from "../spec/mesh.ts";
import {
  type KeysAxis,
  onRank,
  type Plan,
  type PlanBuffer,
} from "../spec/plan/plan.ts";
import { contextBlocks } from "../spec/shared_keys.ts";
import { blockTable, type GatheredKeys, heldBlocks } from "./gathered_keys.ts";
import { bytesOf } from "./host_tensor.ts";
import type { RankMemory } from "./memory.ts";
import type { Assigned, RunAxes } from "./shard.ts";

/** A buffer that the host fills with the assignment of an axis. */
export interface AssignmentBuffer
  extends Required<Pick<PlanBuffer, "name" | "assignment">> {
  /** The ranks of a rank's group, by group rank, for a table of counts; cached. */
  group(rank: number): readonly number[];
  /** Where its axis is a `KeysAxis`: the table of a rank with these keys. */
  keys?(rank: number, gathered: GatheredKeys): Uint32Array;
}

/** The `assignment` buffers of a plan. */
export function assignmentBuffers(plan: Plan): AssignmentBuffer[] {
  const { buffers, mesh, axes } = plan;
  return Object.values(buffers).flatMap((buffer) => {
    const { name, assignment } = buffer;
    if (!assignment) return [];
    const groups = new Map<number, readonly number[]>();
    const group = (rank: number) => {
      const found = groups.get(rank) ??
        groupOf(mesh, rank, assignment.over ?? []);
      groups.set(rank, found);
      return found;
    };
    const { assignment: by } = axes[assignment.axis]!;
    return [{
      name,
      assignment,
      group,
      ...by?.by === "keys" ? { keys: keyTables(plan, buffer, by) } : {},
    }];
  });
}

/** The tables of a `KeysAxis`. */
function keyTables(
  plan: Plan,
  { axes, assignment }: PlanBuffer,
  by: KeysAxis,
): NonNullable<AssignmentBuffer["keys"]> {
  const { over = [] } = plan.axes[by.context]!;
  const blocks = contextBlocks(plan, by);
  return assignment!.holds === "items"
    ? (rank, gathered) =>
      heldBlocks(gathered, groupRankOf(plan.mesh, rank, over), blocks)
    : (rank, gathered) =>
      blockTable(gathered, onRank(axes[0]!.size, rank), blocks);
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
  { assignment: { axis, holds, of }, group, keys }: AssignmentBuffer,
  rank: number,
  axes: RunAxes,
): Uint32Array {
  if (keys && holds !== "counts") {
    const gathered = axes.gathered(axis, rank);
    return gathered ? keys(rank, gathered) : new Uint32Array(0);
  }
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
    case "table":
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
