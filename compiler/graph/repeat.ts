/** Blocks that are recomputed for gradients, so that their values need not be saved. */

import type { Node, NodeOf, Primitive } from "./graph.ts";
import type { NodeBuilder } from "./gradients/node_builder.ts";
import { inOrder } from "./trace.ts";

/**
 * Primitives whose results are saved because they move data between ranks or determine it: choices of experts,
 * dispatched rows, cache contents.
 */
const STORED: readonly Primitive[] = [
  "topK",
  "route",
  "choices",
  "tupleElement",
  "cacheWrite",
  "conv1d",
  "linearRecurrence",
  "selectKeys",
  "selectBlocks",
  "nextState",
];

/** Saved values from which later values are recomputed. */
const MOVED: readonly Primitive[] = ["dispatch", "combine"];

/** The nodes of a block, in order, and their copies in the recomputation. Nodes that are only saved have no copies. */
export interface Repeated {
  readonly inside: ReadonlySet<Node>;
  readonly copies: ReadonlyMap<Node, Node>;
}

/** Recomputes the block that ends with `end` after `after`. */
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
    else if (!STORED.includes(node.primitive)) {
      const inputs = node.inputs.map((input) => copies.get(input) ?? input);
      copies.set(node, { ...node, inputs, phase: "backward" } as Node);
    }
  }
  return { inside, copies };
}
