/** Leaves that are with experts: parameters that rows of a dispatch meet, and what an optimizer keeps of those. */

import {
  type Graph,
  isRouting,
  type Node,
  type Primitive,
} from "../graph/graph.ts";
import { usersOf } from "../graph/users.ts";

/** Primitives that make an element from the same elements of their operands. */
const ELEMENTWISE: readonly Primitive[] = ["map", "cast", "transpose"];

/** Parameters and states whose experts are sharded. `dispatched` are the nodes on rows. */
export function expertLeaves(
  graph: Graph,
  dispatched: ReadonlyMap<Node, Node>,
): ReadonlySet<Node> {
  const found = new Set<Node>();
  const users = usersOf(graph);
  const experts = new Set(
    graph.nodes.filter(isRouting).map(({ params }) => params.expert),
  );
  const has = (node: Node) =>
    !dispatched.has(node) && node.axes.some((axis) => experts.has(axis));
  const onRows = (node: Node) => {
    const route = dispatched.get(node);
    return isRouting(route) && node.axes.includes(route.params.expert);
  };
  const starts = (node: Node) =>
    node.primitive === "reduceSum"
      ? onRows(node.inputs[0]!)
      : node.primitive === "param" && users.get(node)?.some(onRows);
  for (const node of graph.nodes) {
    if (has(node) && starts(node)) found.add(node);
  }
  // Elementwise nodes are as their operands are, and leaves that meet such operands as those are.
  for (let before = -1; before !== found.size;) {
    before = found.size;
    for (const node of graph.nodes) {
      if (!has(node) || !ELEMENTWISE.includes(node.primitive)) continue;
      const operands = node.inputs.filter(has);
      if (!operands.some((input) => found.has(input))) continue;
      found.add(node);
      for (const input of operands) {
        if (input.primitive === "state" || input.primitive === "param") {
          found.add(input);
        }
      }
    }
  }
  return found;
}
