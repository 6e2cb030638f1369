/** Local parts of axes, and their model axes. */

import { shortAxis } from "./axis_name.ts";
import { EXACT } from "./numerics.ts";
import { blockSizes, groupRankOf, groupSizeOf, type Mesh } from "./mesh.ts";
import { tableIds, tableLengths } from "./table.ts";
import type { Plan, PlanAxis, PlanBuffer, PlanWeight } from "./plan/plan.ts";

type Axes = Pick<Plan, "axes" | "mesh">;

/** Fields that determine the numbers of local items of an axis. */
type AxisParts = Pick<PlanAxis, "size" | "over" | "table" | "assignment"> & {
  /** Its length over all ranks, if `size` is that of a rank. */
  readonly total?: number;
};

/** The model axis of a buffer's axis. */
export function modelAxis({ axes }: Pick<Plan, "axes">, axis: string): string {
  return (Object.hasOwn(axes, axis) ? axes[axis]!.of : undefined) ?? axis;
}

/**
 * The axis of experts of dispatched rows along the first axis of a buffer, `expert/ep slot`. Undefined if it has no
 * such rows.
 */
export function expertsOfRows(
  { axes }: Pick<Plan, "axes">,
  buffer: PlanBuffer | undefined,
): PlanAxis | undefined {
  const [expert, slot] = buffer?.axes[0]?.axis.split(" ") ?? [];
  return slot && Object.hasOwn(axes, expert!) ? axes[expert!] : undefined;
}

/** The indices of an axis on a rank, in local order. Undefined if it has all of them, or if they differ by run. */
export function indicesOn(
  { axes, mesh }: Axes,
  axis: string,
  rank: number,
): readonly number[] | undefined {
  const { over, table, size } = axes[axis] ?? {};
  return over && table && tableIds(
    { size: size!, table },
    groupSizeOf(mesh, over),
    groupRankOf(mesh, rank, over),
  );
}

/** The number of indices of an axis per group rank over its mesh axes. Undefined without a table. */
export function partLengths(
  { mesh }: Pick<Plan, "mesh">,
  { size, table, over }: PlanAxis,
): readonly number[] | undefined {
  return table &&
    tableLengths({ size, table }, groupSizeOf(mesh, over ?? []));
}

/** Maximum number of items of an axis per group rank over its mesh axes. */
export function partBounds(
  plan: {
    readonly mesh: Mesh;
    readonly axes: { readonly [axis: string]: AxisParts };
  },
  { size, table, over = [], assignment }: AxisParts,
): readonly number[] {
  const groupSize = groupSizeOf(plan.mesh, over);
  if (table) return tableLengths({ size, table }, groupSize);
  if (assignment?.by === "items" && assignment.each !== undefined) {
    const { each } = assignment;
    const of = plan.axes[assignment.of]!;
    const { table = "block", total = of.size } = of;
    // The same on all ranks, because groups of ranks that share items have buffers of one length.
    const most = Math.max(...tableLengths({ size: total, table }, groupSize));
    return new Array<number>(groupSize).fill(Math.min(size, most * each));
  }
  if (assignment?.by === "keys") {
    const { part, of, sequence, context } = assignment;
    const complete = (name: string): AxisParts => {
      const axis = plan.axes[name]!;
      const { assignment, ...rest } = axis;
      const size = axis.total ?? axis.size;
      // Ends recursion over illegal plans; see below.
      return assignment?.by === "keys" ? { ...rest, size } : { ...axis, size };
    };
    if (part !== "past") return partBounds(plan, complete(of));
    const most = (name: string) =>
      Math.max(...partBounds(plan, complete(name)));
    const each = most(sequence) * most(context) / EXACT.block;
    return new Array<number>(groupSize).fill(Math.min(size, each));
  }
  if (assignment?.by !== "blocks") {
    return new Array<number>(groupSize).fill(size);
  }
  const { within } = assignment;
  if (within === undefined) return blockSizes(size, groupSize);
  const around = plan.axes[within]!;
  // This does not occur in legal plans: the verifier also requests bounds of others. Each is over fewer mesh axes than
  // the previous one.
  if ((around.over?.length ?? 0) >= over.length) {
    return blockSizes(size, groupSize);
  }
  const outer = partBounds(plan, around);
  const parts = Math.ceil(groupSize / outer.length);
  return outer.flatMap((n) =>
    new Array<number>(parts).fill(Math.ceil(n / parts))
  );
}

/** The indices of a stacked axis on a rank, in local order. */
export function stackedOn(
  plan: Axes,
  { stack }: PlanWeight,
  rank: number,
): readonly number[] {
  const { size } = plan.axes[stack!]!;
  return indicesOn(plan, stack!, rank) ??
    Array.from({ length: size }, (_, i) => i);
}

/** The name of a source tensor; for a stacked weight, that of one index. */
export function sourceName(
  plan: Pick<Plan, "axes">,
  { source, stack }: PlanWeight,
  index: number,
): string {
  return stack === undefined ? source : source.replaceAll(
    `{${shortAxis(modelAxis(plan, stack))}}`,
    String(index),
  );
}

/** The names of all source tensors of a weight. */
export function sourceNames(
  plan: Pick<Plan, "axes">,
  weight: PlanWeight,
): string[] {
  const { stack } = weight;
  const count = stack === undefined ? 1 : plan.axes[stack]?.size ?? 0;
  return Array.from({ length: count }, (_, i) => sourceName(plan, weight, i));
}

/** Whether a rank reads only a part of each source tensor of a weight. */
export function isSliced(
  { axes }: Pick<Plan, "axes">,
  weight: Pick<PlanWeight, "axes">,
): boolean {
  return weight.axes.some((axis) => axes[axis]?.table !== undefined);
}

/** The local form of an axis with a table, if it has one; else the axis itself. */
export function heldAxis(
  { axes }: Pick<Plan, "axes">,
  axis: string,
): Plan["axes"][string] {
  return Object.values(axes).find(({ of, table }) => of === axis && table) ??
    axes[axis]!;
}
