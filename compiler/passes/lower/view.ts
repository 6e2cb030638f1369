/** Views and tuple elements: other names for stored values. */

import { invariant } from "../../../spec/errors.ts";
import type { Node, NodeOf } from "../../graph/graph.ts";
import type { Lowering, Storage } from "./context.ts";
import { lowerElementwise } from "./elementwise.ts";
import { lowerPart } from "./routing/route.ts";

type View =
  | NodeOf<"rename">
  | NodeOf<"split">
  | NodeOf<"merge">
  | NodeOf<"optimizationBarrier">
  | NodeOf<"tupleElement">;

/** A view shares its input's buffer if the memory order allows; otherwise it is copied. */
export function lowerView(lowering: Lowering, node: View): void {
  if (node.primitive === "tupleElement") {
    lowerPart(lowering, node);
    return;
  }
  const source = lowering.values.storages.get(node.inputs[0]!);
  invariant(source, `the input of '${node.primitive}' is not stored`);
  const axes = viewAxes(node, source.axes);
  if (axes && !source.bucket) {
    lowering.values.storages.set(node, { ...source, axes });
  } else lowerElementwise(lowering, node as Node);
}

/** The memory axes under the view's names. Undefined if the view does not follow memory order. */
function viewAxes(
  node: Exclude<View, NodeOf<"tupleElement">>,
  axes: Storage["axes"],
): string[] | undefined {
  switch (node.primitive) {
    case "optimizationBarrier":
      return [...axes];
    case "rename": {
      const { from, to } = node.params;
      return axes.map((axis) => axis === from ? to : axis);
    }
    case "split": {
      const { axis: from, into } = node.params;
      return axes.flatMap((axis) => axis === from ? into : [axis]);
    }
    case "merge": {
      const { axes: parts, to } = node.params;
      const first = axes.indexOf(parts[0]!);
      if (parts.some((part, i) => axes[first + i] !== part)) return undefined;
      return [...axes.slice(0, first), to, ...axes.slice(first + parts.length)];
    }
  }
}
