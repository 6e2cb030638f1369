/** Rewrites the nodes of a graph. */

import type { Graph, Node } from "./graph.ts";

/** Replaces every node by `change` of it, given the node with changed operands and the original. */
export function mapNodes(
  graph: Graph,
  change: (node: Node, before: Node) => Node,
): Graph {
  const now = new Map<Node, Node>();
  for (const node of graph.nodes) {
    const inputs = node.inputs.map((input) => now.get(input)!);
    now.set(node, change({ ...node, inputs } as Node, node));
  }
  const of = (named: { readonly [name: string]: Node }) =>
    Object.fromEntries(
      Object.entries(named).map(([name, node]) => [name, now.get(node)!]),
    );
  return {
    axes: graph.axes,
    nodes: [...now.values()],
    outputs: of(graph.outputs),
    states: of(graph.states),
  };
}
