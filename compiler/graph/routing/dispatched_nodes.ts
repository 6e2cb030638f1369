/** Values that are rows of a dispatch. */

import {
  type Graph,
  type Node,
  type NodeOf,
  type RoutingNode,
  valueInputs,
} from "../graph.ts";

/** The node that rows belong to: a routing, or, after expansion, its groups of received rows. */
export type RowsNode = RoutingNode | NodeOf<"group">;

/** Primitives that return rows to tokens. */
const RETURNS: readonly Node["primitive"][] = [
  "combine",
  "combineTranspose",
  "allToAll",
  "localCombine",
  "moveRows",
];

/** Every node on dispatched rows, with its dispatch. */
export function dispatchedNodes(
  graph: Pick<Graph, "nodes">,
): Map<Node, RowsNode> {
  const result = new Map<Node, RowsNode>();
  for (const node of graph.nodes) {
    if (node.primitive === "dispatch" || node.primitive === "received") {
      result.set(node, node.inputs[1] as RowsNode);
      continue;
    }
    if (RETURNS.includes(node.primitive)) continue;
    const from = valueInputs(node).find((input) => result.has(input));
    const rows = from && result.get(from)!;
    if (rows && !sumsRows(node, rows)) result.set(node, rows);
  }
  return result;
}

/** Whether a node sums rows of a dispatch. Its result then has no rows. */
function sumsRows(node: Node, rows: RowsNode): boolean {
  return node.primitive === "reduceSum" &&
    node.params.over.includes(rows.params.slot);
}
