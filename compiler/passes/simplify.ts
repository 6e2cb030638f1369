/**
 * Simplify: merges equal nodes. Postcondition: no two nodes compute the same from the same inputs, so a tensor named
 * twice is stored once. Dead code is already absent: tracing starts from the outputs. Values do not change.
 */

import { cachedJson } from "../../spec/kernel/exact_json.ts";
import type { Graph, Lambda, Node } from "../graph/graph.ts";

/** Merges nodes with equal primitive, parameters and inputs. */
export function simplify(graph: Graph): Graph {
  const lambdas = new Map<string | Lambda, number>();
  const byKey = new Map<string, Node>();
  const ids = new Map<Node, number>();
  const merged = new Map<Node, Node>();
  const nodes: Node[] = [];
  for (const node of graph.nodes) {
    const inputs = node.inputs.map((input) => merged.get(input)!);
    const key = `${node.primitive} ${
      inputs.map((input) => ids.get(input)).join(",")
    } ${node.axes.join(" ")} ${node.dtype} ${paramsKey(node, lambdas)}`;
    let same = byKey.get(key);
    if (!same) {
      same = inputs.every((input, i) => input === node.inputs[i])
        ? node
        : { ...node, inputs } as Node;
      byKey.set(key, same);
      ids.set(same, nodes.length);
      nodes.push(same);
    }
    merged.set(node, same);
  }
  const rename = (named: { readonly [name: string]: Node }) =>
    Object.fromEntries(
      Object.entries(named).map(([name, node]) => [name, merged.get(node)!]),
    );
  return {
    axes: graph.axes,
    nodes,
    outputs: rename(graph.outputs),
    states: rename(graph.states),
  };
}

/**
 * Key of a node's parameters. Lambdas are equal if they are one function, or have the same source position and text.
 */
function paramsKey(node: Node, lambdas: Map<string | Lambda, number>): string {
  if (node.primitive !== "map") return cachedJson(node.params);
  const { lambda } = node.params;
  const location = lambda.lowered
    ? cachedJson(lambda.lowered)
    : lambda.span
    ? `${lambda.span.file}:${lambda.span.line}:${lambda.span.column} ${lambda.js}`
    : lambda;
  if (!lambdas.has(location)) lambdas.set(location, lambdas.size);
  return String(lambdas.get(location));
}
