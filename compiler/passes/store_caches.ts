/**
 * Store caches: stores keys and values in 16 bits, rounded to nearest on write. Postcondition: the states of attention
 * state their storage dtype; computation stays in f32.
 */

import type { HalfDType } from "../../spec/dtype.ts";
import { ModelError } from "../../spec/errors.ts";
import type { Graph, Node, NodeOf } from "../graph/graph.ts";
import { mapNodes } from "../graph/map_nodes.ts";
import type { Localized } from "../sharding/localize.ts";

/** Storage dtypes of caches. */
export type CacheDType = "f32" | HalfDType;

/**
 * Stores the caches of attention in 16 bits. A cache with an odd number of elements per row, and the one read with it,
 * stay f32: two elements are one word. Throws ModelError if no cache can be stored so.
 */
export function storeCaches(
  { graph, placed }: Localized,
  stored: HalfDType,
): Localized {
  const caches = cachesOf(graph, refuse);
  if (caches.size === 0) refuse("the model has no attention that reads one");
  const isOdd = ({ axes }: Node) => placed.axes[axes.at(-1)!]!.size % 2 > 0;
  for (const node of graph.nodes) {
    const read = cachesRead(node);
    if (!read.some(isOdd)) continue;
    for (const { inputs: [state] } of read) {
      caches.delete(state as NodeOf<"state">);
    }
  }
  if (caches.size === 0) {
    refuse("rows of its caches have an odd number of elements");
  }
  const marked = mapNodes(
    graph,
    (node, before) =>
      node.primitive === "state" && caches.has(before as NodeOf<"state">)
        ? { ...node, params: { ...node.params, stored } }
        : node,
  );
  return { graph: marked, placed };
}

function refuse(because: string): never {
  throw new ModelError(
    `Cannot store caches in 16 bits: ${because}. Store them as f32`,
  );
}

/** The caches that a node reads keys or values of. */
export function cachesRead({ primitive, inputs }: Node): readonly Node[] {
  if (primitive === "attention") return inputs.slice(1, 3);
  if (primitive === "selectBlocks") return inputs.slice(1, 2);
  const [, , keys] = inputs;
  // Entries that only some tokens write are no positions.
  const sparse = keys?.primitive === "cacheWrite" && keys.params.sparse;
  return primitive === "selectKeys" && !sparse ? [keys!] : [];
}

/** The states with keys or values of attention. `refuse` reports why they are unknown. */
export function cachesOf(
  { nodes }: Graph,
  refuse: (because: string) => never,
): Set<NodeOf<"state">> {
  const found = new Set<NodeOf<"state">>();
  for (const node of nodes) {
    if (
      node.primitive === "attentionSum" || node.primitive === "attentionGrad"
    ) return refuse("the model is trained");
    for (const cache of cachesRead(node)) {
      const state = cache.inputs[0];
      if (cache.primitive !== "cacheWrite" || state?.primitive !== "state") {
        return refuse("attention reads what it has not written");
      }
      found.add(state);
    }
  }
  return found;
}
