/** Tables of the sharding of placed axes in one run, for kernels that gather and slice them. */

import { cachedIn } from "../spec/bounded_cache.ts";
import { invariant } from "../spec/errors.ts";
import { groupOf, groupRankOf } from "../spec/mesh.ts";
import { onRank, type Plan, type PlanBuffer } from "../spec/plan/plan.ts";
import { type ContextBlocks, contextBlocks } from "../spec/shared_keys.ts";
import {
  blockTable,
  type GatheredKeys,
  heldBlocks,
} from "./exchange/gathered_keys.ts";
import { bytesOf } from "./host_tensor.ts";
import type { RankMemory } from "./memory.ts";
import type { Assigned, RunAxes } from "./shard.ts";

type Assignment = NonNullable<PlanBuffer["assignment"]>;

/** A buffer that the host fills with the assignment of an axis. */
export interface AssignmentBuffer {
  readonly name: string;
  readonly holds: Assignment["holds"];
  /** Its contents on a rank in a run. Empty: they are not used. */
  words(rank: number, axes: RunAxes): Uint32Array;
}

/** The `assignment` buffers of a plan. */
export function assignmentBuffers(plan: Plan): AssignmentBuffer[] {
  return Object.values(plan.buffers).flatMap((buffer) => {
    const { name, assignment } = buffer;
    if (!assignment) return [];
    const { holds } = assignment;
    return [{ name, holds, words: WORDS[holds](plan, assignment, buffer) }];
  });
}

/** Contents of buffers by kind. */
const WORDS: {
  readonly [H in Assignment["holds"]]: (
    plan: Plan,
    assignment: Assignment,
    buffer: PlanBuffer,
  ) => AssignmentBuffer["words"];
} = {
  items(plan, { axis, of }) {
    if (plan.axes[axis]!.assignment?.by === "keys") {
      return wordsOfKeys(plan, axis, (gathered, rank, blocks) => {
        const groupRank = groupRankOf(plan.mesh, rank, blocks.over);
        return heldBlocks(gathered, groupRank, blocks);
      });
    }
    return (rank, axes) => {
      // Indices of a replicated axis are global.
      const numbers = axes.numbers(of!);
      const items = axes.local(axis, rank) ?? [];
      return Uint32Array.from(items, (item) => numbers?.[item] ?? item);
    };
  },
  counts({ mesh }, { axis, over = [] }) {
    const groups = new Map<number, readonly number[]>();
    const groupOfRank = (rank: number) =>
      cachedIn(groups, rank, {
        create: () => groupOf(mesh, rank, over),
      });
    return (rank, axes) =>
      Uint32Array.from(
        groupOfRank(rank),
        (other) => axes.local(axis, other)?.length ?? axes.length(axis),
      );
  },
  rows: (_, { axis }) => (_, axes) =>
    rowsOf(axes.assigned(axis) ?? [], axes.length(axis)),
  table: (plan, { axis }, { axes: [sequences] }) =>
    wordsOfKeys(
      plan,
      axis,
      (gathered, rank, blocks) =>
        blockTable(gathered, onRank(sequences!.size, rank), blocks),
    ),
};

/** Writes the `assignment` buffers of all ranks. */
export function writeAssignments(
  buffers: readonly AssignmentBuffer[],
  ranks: readonly RankMemory[],
  axes: RunAxes,
): void {
  for (const buffer of buffers) {
    const { name, holds } = buffer;
    let words: Uint32Array | undefined;
    for (const memory of ranks) {
      if (!memory.has(name)) continue;
      // Only rows are equal on all ranks.
      if (!words || holds !== "rows") words = buffer.words(memory.rank, axes);
      if (words.length === 0) continue;
      memory.write(name, 0, bytesOf(words));
    }
  }
}

/** Contents for the gathered keys of a rank. Empty if sums are sent instead. */
function wordsOfKeys(
  plan: Plan,
  axis: string,
  words: (
    gathered: GatheredKeys,
    rank: number,
    blocks: ContextBlocks,
  ) => Uint32Array,
): AssignmentBuffer["words"] {
  const { assignment } = plan.axes[axis]!;
  invariant(assignment?.by === "keys", `'${axis}' has no keys`);
  const blocks = contextBlocks(plan, assignment);
  return (rank, axes) => {
    const gathered = axes.gathered(axis, rank);
    return gathered ? words(gathered, rank, blocks) : new Uint32Array(0);
  };
}

/** For each global index, its row in the concatenation of the parts. */
function rowsOf(parts: Assigned, length: number): Uint32Array {
  const rows = new Uint32Array(length);
  let row = 0;
  for (const part of parts) for (const index of part) rows[index] = row++;
  return rows;
}
