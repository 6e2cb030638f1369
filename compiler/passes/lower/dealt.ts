/** Tables of how ragged axes are dealt to the ranks; the runtime fills them for every run. */

import { positionsOver } from "../../../spec/mesh.ts";
import type { PlanBuffer } from "../../../spec/plan.ts";
import { planAxis } from "../place.ts";
import { addBuffer, bufferAxes, type Lowering } from "./context.ts";

/** What a table says of an axis. */
export type Dealt = Omit<NonNullable<PlanBuffer["dealt"]>, "axis">;

/** The table that holds this of an axis; made when first asked for. */
export function dealtBuffer(
  lowering: Lowering,
  axis: string,
  dealt: Dealt,
): string {
  const { placed } = lowering;
  const { holds } = dealt;
  const about = "over" in dealt
    ? ` over ${dealt.over!.join("+")}`
    : "of" in dealt
    ? ` in ${dealt.of}`
    : "";
  const name = `${holds} of ${axis}${about}`;
  if (lowering.buffers.has(name)) return name;
  const axes = holds === "items"
    ? bufferAxes(lowering, [axis])
    : holds === "rows"
    ? [{ axis: `${axis} in order`, size: placed.axes[axis]!.size }]
    : [{ axis: "position", size: positionsOver(placed.mesh, dealt.over!) }];
  return addBuffer(lowering, {
    ...{ name, kind: "dealt", dtype: "u32", axes },
    dealt: { axis: planAxis(placed, axis), ...dealt },
  });
}
