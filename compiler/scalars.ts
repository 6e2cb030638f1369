/** Scalars: lowers the user's lambdas to kernel expressions. Postcondition: every `map` has a scalar function. */

import type { Graph, Lambda, ScalarFunction } from "./graph/graph.ts";

/** Lowers the lambdas of a graph. Reads source files, so it loads TypeScript only if there are lambdas. */
export async function lowerScalars(
  graph: Graph,
): Promise<Map<Lambda, ScalarFunction>> {
  const lambdas = new Set<Lambda>();
  for (const node of graph.nodes) {
    if (node.primitive === "map" && !node.params.lambda.lowered) {
      lambdas.add(node.params.lambda);
    }
  }
  if (!lambdas.size) return new Map();
  const { lowerLambdas } = await import("./source/lower_scalar.ts");
  const list = [...lambdas];
  const lowered = await lowerLambdas(list);
  return new Map(list.map((lambda, i) => [lambda, lowered[i]!]));
}
