/**
 * Buckets: merges collectives of one kind and group. Postcondition: the nodes of one collective are adjacent, after all
 * of their operands, and no node between them uses their results. Values do not change.
 */

import { invariant } from "../../spec/errors.ts";
import type { Graph, Node } from "../graph/graph.ts";
import type { ParamLayout } from "./param_layout.ts";

/** Nodes that one collective moves: `reduceScatter` or `allGather` of one group. */
export interface Bucket {
  readonly members: readonly Node[];
}

/** Maximum elements of a bucket. Bounds memory for data in flight; messages are long enough. */
const FULL = 2 ** 21;

/** A graph, and the buckets of its nodes. */
export interface Bucketed {
  readonly graph: Graph;
  readonly buckets: ReadonlyMap<Node, Bucket>;
}

/** Assigns collectives to buckets, and orders each bucket's nodes together. */
export function fillBuckets(
  graph: Graph,
  layouts: ReadonlyMap<Node, ParamLayout>,
): Bucketed {
  const buckets = bucketsOf(graph, layouts);
  if (buckets.size === 0) return { graph, buckets };
  const nodes: Node[] = [];
  const added = new Set<Node>();
  let waiting: Node[] = [];
  /** Adds a node, or all of its bucket, if all operands have been added. Returns false otherwise. */
  const tryAdd = (node: Node): boolean => {
    const { members } = buckets.get(node) ?? { members: [node] };
    const ready = members.every(({ inputs }) =>
      inputs.every((input) => added.has(input))
    );
    if (!ready) return false;
    for (const member of members) added.add(member);
    nodes.push(...members);
    return true;
  };
  for (const node of graph.nodes) {
    if (added.has(node)) continue;
    if (!tryAdd(node)) {
      waiting.push(node);
      continue;
    }
    // Nodes that waited for a bucket follow it, in order.
    for (let full = buckets.has(node); full;) {
      full = false;
      const still: Node[] = [];
      for (const later of waiting) {
        if (added.has(later)) continue;
        if (!tryAdd(later)) still.push(later);
        else if (buckets.has(later)) full = true;
      }
      waiting = still;
    }
  }
  invariant(waiting.length === 0, "buckets wait for one another");
  return { graph: { ...graph, nodes }, buckets };
}

/** Assigns collectives of one kind, group and depth to a bucket, so that none depends on another of its bucket. */
function bucketsOf(
  { nodes, axes }: Graph,
  layouts: ReadonlyMap<Node, ParamLayout>,
): Map<Node, Bucket> {
  const depths = new Map<Node, number>();
  const open = new Map<string, { members: Node[]; elements: number }>();
  const buckets = new Map<Node, Bucket>();
  for (const node of nodes) {
    const depth = Math.max(0, ...node.inputs.map((x) => depths.get(x)!));
    const moves = node.primitive === "reduceScatter" ||
      node.primitive === "allGather";
    // Dynamic rows, and shards that are moved in their stored layout, are moved separately.
    const counted = [node, ...node.inputs].some((n) =>
      n.axes.some((axis) => axes[axis]?.dynamic)
    );
    if (!moves || counted || layouts.get(node)?.shards) {
      depths.set(node, depth);
      continue;
    }
    depths.set(node, depth + 1);
    const { over } = node.params;
    const terms = node.sharding?.unreduced.join("+");
    const stage = node.sharding?.stage;
    const group = [node.primitive, depth, over.join("+"), stage, node.micro];
    const key = [...group, node.phase, terms].join(" ");
    const elements = node.axes.reduce((n, axis) => n * axes[axis]!.size, 1);
    let bucket = open.get(key);
    if (!bucket || bucket.elements + elements > FULL) {
      open.set(key, bucket = { members: [], elements: 0 });
    }
    bucket.members.push(node);
    bucket.elements += elements;
    buckets.set(node, bucket);
  }
  return buckets;
}
