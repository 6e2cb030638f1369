/**
 * Recomputes values derived only from parameters in the backward pass, so that they need not be saved from the forward
 * pass.
 */

import type { Graph, Node } from "../graph/graph.ts";

/**
 * Replaces, in the backward pass, forward nodes computed only from parameters by copies. The copies start with
 * parameters that are gathered a second time. Values do not change.
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
