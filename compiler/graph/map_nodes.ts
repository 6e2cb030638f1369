/** A graph with other nodes in the places of its own. */

import type { Graph, Node } from "./graph.ts";

/** Every node as `change` makes it of a node, whose operands are changed already, and of what it was before. */
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
