/**
 * The model block of each node, such as `layers.3`. Buffer names include it, so that equal layers have equal names
 * except for the number.
 */

import type { Graph, Node } from "../../graph/graph.ts";

/** The first number between dots in a name, with the word before it. */
const BLOCK = /(?:^|\.)([A-Za-z_]\w*\.\d+)(?:\.|$)/;

/**
 * The block of each node that uses a parameter or state of one: the block of its own name, else the last block of its
 * operands in graph order.
 */
export function blocksOf(graph: Graph): ReadonlyMap<Node, string> {
  const order = new Map<string, number>();
  const blocks = new Map<Node, string>();
  for (const node of graph.nodes) {
    const named = node.block !== undefined
      ? BLOCK.exec(node.block)?.[1] ?? node.block
      : node.primitive === "param" || node.primitive === "state"
      ? BLOCK.exec(node.params.name)?.[1]
      : undefined;
    if (named !== undefined && !order.has(named)) {
      order.set(named, order.size);
    }
    let block = named;
    for (const input of node.inputs) {
      const other = blocks.get(input);
      if (other === undefined) continue;
      if (block === undefined || order.get(other)! > order.get(block)!) {
        block = other;
      }
    }
    if (block !== undefined) blocks.set(node, block);
  }
  return blocks;
}
