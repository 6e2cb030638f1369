/** Which part of an axis a rank holds, and what the axis of the model is called. */

import { shortAxis } from "./axis_name.ts";
import { blockSizes, groupRankOf, groupSizeOf, type Mesh } from "./mesh.ts";
import { tableIds, tableLengths } from "./table.ts";
import type { Plan, PlanAxis, PlanBuffer, PlanWeight } from "./plan/plan.ts";

type Axes = Pick<Plan, "axes" | "mesh">;

/** What says how many items of an axis ranks have. */
type AxisParts = Pick<PlanAxis, "size" | "over" | "table" | "assignment">;

/** The axis of the model that an axis of a buffer is, or is a part of. */
export function modelAxis({ axes }: Pick<Plan, "axes">, axis: string): string {
  return (Object.hasOwn(axes, axis) ? axes[axis]!.of : undefined) ?? axis;
}

/** The axis of experts whose rows a buffer has along its first axis, `expert/ep slot`; undefined where it has no such rows. */
export function expertsOfRows(
  { axes }: Pick<Plan, "axes">,
  buffer: PlanBuffer | undefined,
): PlanAxis | undefined {
  const [expert, slot] = buffer?.axes[0]?.axis.split(" ") ?? [];
  return slot && Object.hasOwn(axes, expert!) ? axes[expert!] : undefined;
}

/** The indices of an axis that a rank holds, in local order; undefined where it holds all of them, or they differ by run. */
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

/** How many indices of an axis each group rank over its mesh axes holds; undefined where no table says it. */
export function partLengths(
  { mesh }: Pick<Plan, "mesh">,
  { size, table, over }: PlanAxis,
): readonly number[] | undefined {
  return table &&
    tableLengths({ size, table }, groupSizeOf(mesh, over ?? []));
}

/** How many items of an axis each group rank over its mesh axes has at most. */
export function partBounds(
  plan: {
    readonly mesh: Mesh;
    readonly axes: { readonly [axis: string]: AxisParts };
  },
  { size, table, over = [], assignment }: AxisParts,
): readonly number[] {
  const groupSize = groupSizeOf(plan.mesh, over);
  if (table) return tableLengths({ size, table }, groupSize);
  if (assignment?.by !== "blocks") {
    return new Array<number>(groupSize).fill(size);
  }
  const { within } = assignment;
  if (within === undefined) return blockSizes(size, groupSize);
  const around = plan.axes[within]!;
  // No legal plan has it: the verifier asks for bounds of others too, and each is over fewer mesh axes than the one before.
  if ((around.over?.length ?? 0) >= over.length) {
    return blockSizes(size, groupSize);
  }
  const outer = partBounds(plan, around);
  const parts = Math.ceil(groupSize / outer.length);
  return outer.flatMap((n) =>
    new Array<number>(parts).fill(Math.ceil(n / parts))
  );
}

/** The indices of a stacked axis that a rank holds, in local order. */
export function stackedOn(
  plan: Axes,
  { stack }: PlanWeight,
  rank: number,
): readonly number[] {
  const { size } = plan.axes[stack!]!;
  return indicesOn(plan, stack!, rank) ??
    Array.from({ length: size }, (_, i) => i);
}

/** The name of a source tensor: of a stacked weight, that of one index. */
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

/** Whether a rank takes only a part of each source tensor of a weight. */
export function isSliced(
  { axes }: Pick<Plan, "axes">,
  weight: Pick<PlanWeight, "axes">,
): boolean {
  return weight.axes.some((axis) => axes[axis]?.table !== undefined);
}

/** An axis as ranks hold parts of it, where they do, with a table of which; else the axis itself. */
export function heldAxis(
  { axes }: Pick<Plan, "axes">,
  axis: string,
): Plan["axes"][string] {
  return Object.values(axes).find(({ of, table }) => of === axis && table) ??
    axes[axis]!;
}
