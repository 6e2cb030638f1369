/** Tables of how placed axes lie on the ranks; the runtime fills them for every run. */

import { positionsOver } from "../../../spec/mesh.ts";
import type { PlanBuffer } from "../../../spec/plan.ts";
import { addBuffer, bufferAxes, type Lowering } from "./context.ts";

type Holds = NonNullable<PlanBuffer["dealt"]>["holds"];

/** The table of a placed axis that holds this of it; made when first asked for. */
export function dealtBuffer(
  lowering: Lowering,
  axis: string,
  holds: Holds,
): string {
  const name = `${holds} of ${axis}`;
  if (lowering.buffers.has(name)) return name;
  const { placed } = lowering;
  const { size, over } = placed.axes[axis]!;
  const axes = holds === "items"
    ? bufferAxes(lowering, [axis])
    : holds === "rows"
    ? [{ axis: `${axis} in order`, size }]
    : [{ axis: "position", size: positionsOver(placed.mesh, over!) }];
  return addBuffer(lowering, {
    ...{ name, kind: "dealt", dtype: "u32", axes },
    dealt: { axis, holds },
  });
}
