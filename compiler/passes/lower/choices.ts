/** Routings by given choices. */

import type { Node, NodeOf } from "../../graph/graph.ts";
import type { Lowering } from "./context.ts";
import { rowMajorBuffer } from "./elementwise.ts";

/** Nothing to compute: choices, weights and slots are where they were made. */
export function lowerChoices(
  lowering: Lowering,
  node: NodeOf<"choices">,
): void {
  const buffer = (given: Node) => rowMajorBuffer(lowering, given, node.axes);
  const [index, weight, slot] = node.inputs as [Node, Node, Node?];
  lowering.values.results.set(node, {
    index: buffer(index),
    weight: buffer(weight),
    ...(slot ? { slot: buffer(slot) } : {}),
  });
}
