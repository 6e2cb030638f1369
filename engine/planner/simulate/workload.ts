/** Assumptions about a predicted step: tokens, sequences and expert load. */

import { modelAxis } from "../../../spec/axis_parts.ts";
import { cachedIn } from "../../../spec/bounded_cache.ts";
import { DataError } from "../../../spec/errors.ts";
import { groupSizeOf } from "../../../spec/mesh.ts";
import type { KeysAxis, Plan, Program } from "../../../spec/plan/plan.ts";
import {
  contextBlocks,
  earlierBlocks,
  gathersKeys,
} from "../../../spec/shared_keys.ts";
import type { ExpertLoad } from "./loads.ts";

/** A step of a program, for predictions of its time. */
export interface Workload {
  /** Items of every dynamic axis, such as tokens, over all ranks. */
  readonly tokens: number;
  /** Number of sequences, with equal numbers of tokens. Default: 1. */
  readonly sequences?: number;
  /** Earlier tokens of each sequence. Default: 0. */
  readonly past?: number;
  /** Distribution of choices over experts. Default: even. */
  readonly experts?: ExpertLoad;
}

/** Lengths of dynamic axes in a workload. */
export interface Lengths {
  /** Items of an axis on the rank with the most. */
  max(axis: string): number;
  /** Items of an axis on all ranks of a group over these mesh axes. */
  over(axis: string, over: readonly string[]): number;
}

/** Shards a workload over the ranks of a plan. Throws DataError if it exceeds the bounds of the plan. */
export function lengthsOf(
  plan: Plan,
  program: Program,
  { tokens, sequences = 1, past = 0 }: Workload,
): Lengths {
  const rows = new Set(
    Object.values(program.inputs).filter(({ indexes }) =>
      indexes !== undefined && plan.axes[indexes]!.dynamic
    ).map(({ axes }) => modelAxis(plan, axes[0]!)),
  );
  for (const { axes } of Object.values(program.inputs)) {
    for (const axis of axes) {
      const { dynamic, exact, size } = plan.axes[axis]!;
      if (!dynamic || exact || rows.has(modelAxis(plan, axis))) continue;
      if (tokens <= size) continue;
      throw new DataError(
        `Cannot predict a step of ${tokens} tokens: the plan allows at most ${size}. Raise --max-tokens, or give fewer`,
      );
    }
  }
  const total = (axis: string): number => {
    const { size, exact } = plan.axes[axis]!;
    if (exact) return size;
    const wanted = rows.has(modelAxis(plan, axis))
      ? Math.min(sequences, tokens)
      : tokens;
    return Math.min(size, wanted);
  };
  const found = new Map<string, number>();
  const max = (axis: string): number =>
    cachedIn(found, axis, { create: () => maxOf(axis) });
  const maxOf = (axis: string): number => {
    const known = plan.axes[axis]!;
    const { over, assignment } = known;
    if (!known.dynamic) return known.size;
    if (assignment?.by === "keys") return attended(assignment).max;
    if (!over) return total(axis);
    const groupSize = groupSizeOf(plan.mesh, over);
    if (assignment?.by === "blocks") {
      if (assignment.within === undefined) {
        return Math.ceil(total(axis) / groupSize);
      }
      const outer = plan.axes[assignment.within]!.over ?? [];
      const inner = over.filter((name) => !outer.includes(name));
      return Math.ceil(
        max(assignment.within) / groupSizeOf(plan.mesh, inner),
      );
    }
    if (assignment?.by === "group") {
      const apart = plan.axes[assignment.of]!.over ?? [];
      const inner = apart.filter((name) => !over.includes(name));
      return Math.min(
        total(axis),
        max(assignment.of) * groupSizeOf(plan.mesh, inner),
      );
    }
    // Entire sequences stay on one rank.
    const parts = Math.min(sequences, total(axis));
    return Math.ceil(total(axis) / parts * Math.ceil(parts / groupSize));
  };
  /** Items of an axis of attention over positions that ranks share: on the rank with the most, and on all of them. */
  const attended = (axis: KeysAxis): { max: number; all: number } => {
    const { part, of } = axis;
    const tokens = max(of);
    const groups = groupSizeOf(plan.mesh, plan.axes[of]!.over ?? []);
    const each = Math.ceil(Math.min(sequences, total(of)) / groups);
    const [first, end] = earlierBlocks(axis, past);
    const blocks = each * (end - first);
    const gathers = gathersKeys(axis, blocks, tokens);
    if (gathers !== (part !== "relayed")) return { max: 0, all: 0 };
    if (part !== "past") return { max: tokens, all: tokens };
    const { ranks, perRank } = contextBlocks(plan, axis);
    const most = Math.max(
      ...Array.from(
        { length: ranks },
        (_, rank) =>
          Math.min(end, (rank + 1) * perRank) - Math.max(first, rank * perRank),
      ),
    );
    return { max: each * Math.max(0, most), all: blocks };
  };
  return {
    max,
    over: (axis, over) => {
      const { assignment } = plan.axes[axis]!;
      if (assignment?.by === "keys") return attended(assignment).all;
      const sharded = plan.axes[axis]!.over ?? [];
      const copies = over.filter((name) => !sharded.includes(name));
      const others = sharded.filter((name) => !over.includes(name));
      const share = total(axis) / groupSizeOf(plan.mesh, others);
      const held = sharded.length === 0 ? total(axis) : share;
      return Math.ceil(held * groupSizeOf(plan.mesh, copies));
    },
  };
}
