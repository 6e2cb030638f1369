/** Which values are rows of a dispatch. */

import { type Graph, isRouting, type Node, valueInputs } from "./graph.ts";

/** Every node on dispatched rows, with the routing that put it there. */
export function dispatchedNodes(graph: Pick<Graph, "nodes">): Map<Node, Node> {
  const result = new Map<Node, Node>();
  for (const node of graph.nodes) {
    if (node.primitive === "dispatch") result.set(node, node.inputs[1]!);
    else if (node.primitive !== "combine" && node.primitive !== "collect") {
      const from = valueInputs(node).find((input) => result.has(input));
      const route = from && result.get(from)!;
      if (route && !sumsRows(node, route)) result.set(node, route);
    }
  }
  return result;
}

/** Whether a node sums rows of a dispatch, so that what it makes has none. */
function sumsRows(node: Node, route: Node): boolean {
  return node.primitive === "accumulate" && isRouting(route) &&
    node.params.over.includes(route.params.slot);
}
