/** Leaves on the ranks of experts: parameters used with dispatched rows, and their optimizer state. */

import {
  type Graph,
  isRouting,
  type Node,
  type Primitive,
} from "../graph/graph.ts";
import { usersOf } from "../graph/users.ts";

/** Elementwise primitives. */
const ELEMENTWISE: readonly Primitive[] = ["map", "cast", "transpose"];

/** Parameters and states whose experts are sharded. `dispatched`: the nodes on rows. */
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
  // Elementwise nodes have the sharding of their operands, and leaves used with them have the same.
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
