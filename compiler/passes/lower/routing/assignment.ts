/** Tables of the assignment of ragged axes to ranks. The runtime fills them for every run. */

import { groupSizeOf } from "../../../../spec/mesh.ts";
import type { PlanBuffer } from "../../../../spec/plan/plan.ts";
import { planAxis } from "../../../sharding/lengths.ts";
import { addBuffer, type Lowering } from "../context.ts";

/** Kind of an assignment table. */
export type Assignment = Omit<NonNullable<PlanBuffer["assignment"]>, "axis">;

/** The buffer of an assignment table, created on first use. */
export function assignmentBuffer(
  lowering: Lowering,
  axis: string,
  { table, ...assignment }: Assignment & {
    /** Axes, if it holds a table. */
    readonly table?: readonly string[];
  },
): string {
  const { placed } = lowering;
  const { holds } = assignment;
  const about = assignment.over?.length
    ? ` over ${assignment.over.join("+")}`
    : "of" in assignment
    ? ` in ${assignment.of}`
    : "";
  const name = `${holds} of ${axis}${about}`;
  if (lowering.draft.buffers.has(name)) return name;
  const axes = {
    items: () => [axis],
    rows: () => [{ axis: `${axis} in order`, size: placed.axes[axis]!.size }],
    counts: () => [{
      axis: "groupRank",
      size: groupSizeOf(placed.mesh, assignment.over!),
    }],
    table: () => table!,
  }[holds]();
  return addBuffer(lowering, {
    name,
    kind: "assignment",
    dtype: holds === "table" ? "i32" : "u32",
    axes,
    assignment: { axis: planAxis(placed, axis), ...assignment },
  });
}
