/** Which indices of an axis a rank holds of a weight. */

import { positionOver } from "./mesh.ts";
import type { Plan, PlanWeight } from "./plan.ts";

/** The indices that a rank holds of the axis that is picked, in local order. */
export function pickedOn(
  plan: Pick<Plan, "axes" | "mesh">,
  { axis, placed }: NonNullable<PlanWeight["pick"]>,
  rank: number,
): readonly number[] {
  const { size, over, table } = plan.axes[axis] ?? { size: 0 };
  return placed
    ? table?.[positionOver(plan.mesh, rank, over ?? [])] ?? []
    : Array.from({ length: size }, (_, i) => i);
}
