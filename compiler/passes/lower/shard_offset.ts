/** Mapping from local items of an axis to global ones. */

import { add, load, sub } from "../../../spec/kernel/build.ts";
import type { Expr } from "../../../spec/kernel/tree.ts";
import { groupRankOf } from "../../../spec/mesh.ts";
import type { LocalAxis } from "../../sharding/local_axes.ts";
import { idsAt } from "../../sharding/lengths.ts";
import { addTable, type Lowering, partOf } from "./context.ts";
import { assignmentBuffer } from "./routing/assignment.ts";
import type { KernelScope } from "./scope.ts";

/** A local axis, and the axis that it is a shard of. */
export interface Held {
  readonly from: string;
  readonly to: string;
}

/** The index along `from` of item `index` of `to`. */
export function heldIndex(
  scope: KernelScope,
  { from, to }: Held,
  index: Expr,
): Expr {
  const { lowering } = scope;
  if (lowering.placed.axes[to]!.assignment) {
    const items = assignmentBuffer(lowering, to, { holds: "items", of: from });
    return load(scope.read(items), index, "u32");
  }
  const { axes } = lowering.placed;
  if (isInBlocks(axes[from]!) && isInBlocks(axes[to]!)) {
    return add(heldStart(scope, { from, to }), index);
  }
  const held = heldItems(lowering, { from, to });
  const max = Math.max(1, ...held.map((items) => items.length));
  const table = addTable(lowering, `items of ${to} in ${from}`, {
    axis: "item",
    data: held.map((items) =>
      Array.from({ length: max }, (_, i) => items[i] ?? 0)
    ),
  });
  return load(scope.read(table), index, "u32");
}

/** The index along `from` of the first item of `to`, whose items follow each other. */
export function heldStart(scope: KernelScope, { from, to }: Held): Expr {
  const first = partOf(scope, to, "start");
  return scope.lowering.placed.axes[from]!.table
    ? sub(first, partOf(scope, from, "start"))
    : first;
}

/** Whether the items of an axis are consecutive on every rank. */
function isInBlocks({ table }: LocalAxis): boolean {
  return typeof table === "object"
    ? table.every((ids) => ids.every((id, i) => id === ids[0]! + i))
    : table !== "cyclic";
}

/** For each rank, the indices along `from` of its items of `to`. */
function heldItems({ placed }: Lowering, { from, to }: Held): number[][] {
  const { mesh, ranks, axes } = placed;
  const idsOn = (axis: LocalAxis, rank: number) =>
    idsAt(placed, axis, groupRankOf(mesh, rank, axis.over));
  return Array.from({ length: ranks }, (_, rank) => {
    const at = new Map(idsOn(axes[from]!, rank).map((id, i) => [id, i]));
    return idsOn(axes[to]!, rank).map((id) => at.get(id)!);
  });
}
