/** Blocks that are computed again for gradients, so that what is inside them need not be kept until then. */

import type { Node, NodeOf, Primitive } from "./graph.ts";
import type { NodeBuilder } from "./node_builder.ts";
import { inOrder } from "./trace.ts";

/** What moves between ranks or decides what does is kept: choices of experts, rows on their way, what a cache holds. */
const KEPT: readonly Primitive[] = [
  "topK",
  "route",
  "choices",
  "tupleElement",
  "cacheWrite",
  "conv1d",
  "linearRecurrence",
  "nextState",
];

/** Values that are kept, and from which what follows is computed again. */
const MOVED: readonly Primitive[] = ["dispatch", "combine"];

/** The nodes of a block, in order, and what stands for them the second time; those that are only kept have nothing else. */
export interface Repeated {
  readonly inside: ReadonlySet<Node>;
  readonly copies: ReadonlyMap<Node, Node>;
}

/** Compute the block that ends with `end` a second time, after `after`. */
export function repeat(
  end: NodeOf<"optimizationBarrier">,
  after: Node,
  b: NodeBuilder,
): Repeated {
  const { block } = end.params;
  const inside = new Set<Node>();
  const copies = new Map<Node, Node>();
  const later = (x: Node) =>
    b.make("optimizationBarrier", [x, after], { block, end: "in" as const });
  for (const node of inOrder([end.inputs[0]!])) {
    const begins = node.primitive === "optimizationBarrier" &&
      node.params.end === "in" &&
      node.params.block === block;
    if (!begins && !node.inputs.some((input) => inside.has(input))) continue;
    inside.add(node);
    if (begins) copies.set(node, later(node.inputs[0]!));
    else if (MOVED.includes(node.primitive)) copies.set(node, later(node));
    else if (!KEPT.includes(node.primitive)) {
      const inputs = node.inputs.map((input) => copies.get(input) ?? input);
      copies.set(node, { ...node, inputs, phase: "backward" } as Node);
    }
  }
  return { inside, copies };
}
