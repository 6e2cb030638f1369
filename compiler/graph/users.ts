/** Users of nodes. */

import type { Graph, Node } from "./graph.ts";

/** The users of nodes, in the order of the graph. */
type Users = ReadonlyMap<Node, readonly Node[]>;

/** Graphs are immutable. */
const known = new WeakMap<Graph, Users>();

/** The users of every node, once per use. Each graph is visited once. */
export function usersOf(graph: Graph): Users {
  const users = known.get(graph) ?? findUsers(graph);
  known.set(graph, users);
  return users;
}

function findUsers(graph: Graph): Users {
  const users = new Map<Node, Node[]>();
  for (const node of graph.nodes) {
    for (const input of node.inputs) {
      const list = users.get(input);
      if (list) list.push(node);
      else users.set(input, [node]);
    }
  }
  return users;
}
