/** Routings with given choices. */

import type { Node, NodeOf } from "../../../graph/graph.ts";
import type { Lowering } from "../context.ts";
import { rowMajorBuffer } from "../elementwise.ts";

/** Computes nothing: choices, weights and slots are stored by their own nodes. */
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
