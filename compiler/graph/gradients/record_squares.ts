/** Adds an output per contracted parameter: the sums of squares of its other operand, column by column. */

import type { Graph, Node, NodeOf } from "../graph.ts";
import { builderContext, NodeBuilder } from "./node_builder.ts";
import { inOrder } from "../trace.ts";

/** Start of the names of these outputs, before the name of the parameter. */
export const SQUARES = "squares.";

/** The parameter that a contraction reads as it is, or with axes that are renamed or split. */
function contractedParam(node: Node): NodeOf<"param"> | undefined {
  if (node.primitive === "param") return node;
  const view = node.primitive === "split" || node.primitive === "merge" ||
    node.primitive === "rename";
  return view ? contractedParam(node.inputs[0]!) : undefined;
}

/**
 * The graph with `squares.PARAMETER` for each parameter that is contracted: f32 sums over all tokens of a step, with
 * the contracted axes in the order of the parameter's columns, and the expert axis before them if both have it. A
 * parameter that is contracted twice has those of the first contraction.
 */
export function recordSquares(graph: Graph): Graph {
  const context = builderContext(graph.axes, graph.nodes);
  const outputs = { ...graph.outputs };
  const experts = new Set(context.slots.values());
  for (const node of graph.nodes) {
    if (node.primitive !== "dot") continue;
    const [x, y] = node.inputs as readonly [Node, Node];
    const param = contractedParam(y);
    const name = `${SQUARES}${param?.params.name}`;
    if (param === undefined || name in outputs) continue;
    const { over } = node.params;
    const columns = y.axes.filter((axis) => over.includes(axis));
    const batch = y.axes.filter((axis) =>
      experts.has(axis) && x.axes.includes(axis) && !over.includes(axis)
    );
    const b = new NodeBuilder(context, node);
    const wide = b.cast(x, "f32");
    const square = b.map(
      (v) => ({ op: "binary", type: "f32", fn: "mul", a: v!, b: v! }),
      wide,
    );
    outputs[name] = b.sumTo(square, [...batch, ...columns]);
  }
  const nodes = inOrder([
    ...Object.values(outputs),
    ...Object.values(graph.states),
  ]);
  return { ...graph, nodes, outputs };
}
