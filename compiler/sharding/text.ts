/** Text of a graph with shardings. */

import type { Graph, Node } from "../graph/graph.ts";
import { formatSharding, REPLICATED } from "../graph/sharding.ts";

/** One line per node: `%2 = dot %0 %1 over head : token/dp embed {unreduced tp}`. */
export function formatSharded({ nodes }: Pick<Graph, "nodes">): string {
  const numbers = new Map(nodes.map((node, i) => [node, i]));
  const lines = nodes.map((node) => {
    const words = [
      `%${numbers.get(node)} = ${node.primitive}`,
      ...node.inputs.map((input) => `%${numbers.get(input)}`),
      ...aboutOf(node),
    ];
    const type = formatSharding(node.axes, node.sharding ?? REPLICATED);
    return `${words.join(" ")} : ${type}`;
  });
  return `${lines.join("\n")}\n`;
}

/** The name of a leaf, or the axes of an op. */
function aboutOf({ params }: Node): string[] {
  if ("name" in params) return [params.name];
  return "over" in params ? [`over ${[params.over].flat().join(" ")}`] : [];
}
