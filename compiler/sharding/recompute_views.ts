/** What gradients need of parameters alone is computed from them a second time, so that it need not be saved since the forward pass. */

import type { Graph, Node } from "../graph/graph.ts";

/**
 * The graph in which no node of the backward pass uses a forward node that is computed from parameters alone: it uses a copy.
 * The second copy begins with parameters that are gathered a second time. Values never change.
 */
export function recomputeViews(graph: Graph): Graph {
  const ofParameters = new Set<Node>();
  const now = new Map<Node, Node>();
  const again = new Map<Node, Node>();
  const nodes: Node[] = [];
  const add = (node: Node): Node => {
    nodes.push(node);
    return node;
  };
  const copyOf = (node: Node): Node => {
    if (node.primitive === "param") return now.get(node)!;
    const before = again.get(node);
    if (before) return before;
    const inputs = node.inputs.map(copyOf);
    const copy = add({ ...node, inputs, phase: "backward" } as Node);
    again.set(node, copy);
    return copy;
  };
  for (const node of graph.nodes) {
    const isView = node.phase === undefined && node.inputs.length > 0 &&
      node.inputs.every((input) => ofParameters.has(input));
    if (isView || node.primitive === "param") ofParameters.add(node);
    const inputs = node.inputs.map((input) =>
      node.phase === "backward" && ofParameters.has(input)
        ? copyOf(input)
        : now.get(input)!
    );
    const same = inputs.every((input, i) => input === node.inputs[i]);
    now.set(node, add(same ? node : { ...node, inputs } as Node));
  }
  const of = (named: { readonly [name: string]: Node }) =>
    Object.fromEntries(
      Object.entries(named).map(([name, node]) => [name, now.get(node)!]),
    );
  return {
    axes: graph.axes,
    nodes,
    outputs: of(graph.outputs),
    states: of(graph.states),
  };
}
