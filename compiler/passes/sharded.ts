/**
 * Sharded: values that lie by expert although they are on no dispatched row, as parameters of experts do: their
 * gradients, what an optimizer remembers of them, their next values. Each rank has those of its own experts. `partial.ts`
 * adds values of whose other axes ranks have parts.
 */

import {
  type Graph,
  isRouting,
  type Node,
  type Primitive,
} from "../graph/graph.ts";
import { usersOf } from "./users.ts";
import type { Placed } from "./placed.ts";

/** Node -> the axes that its rank has a part of, each placed by a table. */
export type Sharded = ReadonlyMap<Node, readonly string[]>;

/** Whether every rank holds all experts of an axis, in order. */
export function isWhole({ axes }: Placed, expert: string): boolean {
  const { table } = axes[expert]!;
  return table?.length === 1 && table[0]!.every((id, i) => id === i);
}

/** Primitives that make an element from the same elements of their operands. */
const ELEMENTWISE: readonly Primitive[] = ["map", "cast", "transpose"];

/** Find the values that lie by expert. `dispatched` are the nodes on dispatched rows. */
export function shardedNodes(
  graph: Graph,
  placed: Placed,
  dispatched: ReadonlyMap<Node, Node>,
): Sharded {
  const sharded = new Map<Node, readonly string[]>();
  const users = usersOf(graph);
  for (const expert of placed.expertAxes) {
    if (isWhole(placed, expert)) continue;
    const has = (node: Node) =>
      node.axes.includes(expert) && !dispatched.has(node);
    const startsHere = (node: Node) =>
      node.primitive === "accumulate"
        ? onRows(dispatched.get(node.inputs[0]!), expert)
        : node.primitive === "param" &&
          users.get(node)?.some((user) => onRows(dispatched.get(user), expert));
    for (const node of graph.nodes) {
      if (has(node) && startsHere(node)) sharded.set(node, [expert]);
    }
    // Elementwise nodes lie as their operands do, and leaves that meet such operands as those do.
    for (let before = -1; before !== sharded.size;) {
      before = sharded.size;
      for (const node of graph.nodes) {
        const own = node.inputs.filter(has);
        if (!has(node) || !own.some((input) => sharded.has(input))) continue;
        if (!ELEMENTWISE.includes(node.primitive)) continue;
        sharded.set(node, [expert]);
        for (const input of own) {
          const leaf = input.primitive === "state" ||
            input.primitive === "param";
          if (leaf) sharded.set(input, [expert]);
        }
      }
    }
  }
  return sharded;
}

function onRows(route: Node | undefined, expert: string): boolean {
  return isRouting(route) && route.params.expert === expert;
}
