/**
 * Micro-batches of a training step in one graph: the forward pass once per micro-batch, with the same parameters. Steps
 * of different micro-batches can then be executed at the same time on different pipeline stages.
 */

import type { Graph, Node } from "./graph.ts";
import { updatedBy } from "./in_place.ts";

/** The name of an input, a state or an output of a micro-batch. */
export function microName(name: string, micro: number): string {
  return `${name}@${micro}`;
}

/**
 * Inputs that all micro-batches share: the sequence of each token, by which tokens are assigned to ranks. Micro-batches
 * of a step have the same lengths.
 */
export function sharedInputs({ nodes }: Pick<Graph, "nodes">): Set<string> {
  return new Set(
    nodes.flatMap((node) => {
      const by = node.primitive === "attention"
        ? node.inputs[3]
        : updatedBy(node);
      return by?.primitive === "input" ? [by.params.name] : [];
    }),
  );
}

/** The forward pass of a micro-batch. Parameters, and the inputs of `shared`, are those of the graph. */
export function microBatch(
  graph: Graph,
  micro: number,
  shared: ReadonlySet<string>,
): Graph {
  const now = new Map<Node, Node>();
  for (const node of graph.nodes) {
    const common = node.primitive === "param" ||
      node.primitive === "input" && shared.has(node.params.name);
    if (common) {
      now.set(node, node);
      continue;
    }
    const inputs = node.inputs.map((input) => now.get(input)!);
    const params = node.primitive === "input" || node.primitive === "state"
      ? { ...node.params, name: microName(node.params.name, micro) }
      : node.params;
    now.set(node, { ...node, inputs, params, micro } as Node);
  }
  const named = (values: { readonly [name: string]: Node }) =>
    Object.fromEntries(
      Object.entries(values).map(([name, node]) =>
        [microName(name, micro), now.get(node)!] as const
      ),
    );
  return {
    axes: graph.axes,
    nodes: [...now.values()],
    outputs: named(graph.outputs),
    states: named(graph.states),
  };
}
