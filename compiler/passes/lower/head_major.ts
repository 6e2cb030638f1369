/** Caches in memory with the positions of a head in sequence, for devices that read one head after another. */

import type { Graph, Node, NodeOf } from "../../graph/graph.ts";
import { usersOf } from "../../graph/users.ts";

/**
 * The axes in memory of caches whose heads precede positions, `sequence kvHead context dim`. None if a cache is also
 * read otherwise: gathered from other ranks, or for derivatives.
 */
export function headMajorAxes(
  graph: Graph,
): ReadonlyMap<Node, readonly string[]> {
  const users = usersOf(graph);
  const found = new Map<Node, readonly string[]>();
  for (const node of graph.nodes) {
    if (node.primitive !== "attention" || node.params.kvHead === undefined) {
      continue;
    }
    for (const { inputs: [state] } of node.inputs.slice(1, 3)) {
      const [sequence, context, kvHead, dim] = state?.axes ?? [];
      const isCache = state?.primitive === "state" &&
        (users.get(state) ?? []).every((write) =>
          write.primitive === "cacheWrite" &&
          (users.get(write) ?? []).every(readsHeads)
        );
      if (!isCache) return new Map();
      found.set(state, [sequence!, kvHead!, context!, dim!]);
    }
  }
  return found;
}

/** Whether a node attends to keys of several heads, all on this rank. */
function readsHeads(node: Node): node is NodeOf<"attention"> {
  return node.primitive === "attention" && node.params.kvHead !== undefined &&
    node.inputs.at(-1)!.primitive !== "keyTable";
}
