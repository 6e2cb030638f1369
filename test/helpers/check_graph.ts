/** Legality of graphs: every node satisfies its rule, follows its operands, and uses axes with sizes. */

import { checkDispatched } from "../../compiler/graph/routing/dispatched.ts";
import type {
  Graph,
  Node,
  Primitive,
  PrimitiveParams,
} from "../../compiler/graph/graph.ts";
import {
  RuleError,
  sameAxes,
  type TensorType,
} from "../../compiler/graph/operands.ts";
import { RULES } from "../../compiler/graph/rules.ts";
import { deriveSizes } from "../../compiler/graph/sizes.ts";
import { ModelError } from "../../spec/errors.ts";

/** A rule for a node of any primitive. */
type AnyRule = (input: {
  readonly inputs: readonly Node[];
  readonly params: PrimitiveParams[Primitive];
  readonly given: TensorType;
}) => TensorType;

/** Checks every node against the rule of its primitive, and the graph against its invariants. Throws ModelError. */
export function checkGraph(graph: Graph): void {
  const seen = new Set<Node>();
  for (const node of graph.nodes) {
    if (node.inputs.some((input) => !seen.has(input))) {
      throw new ModelError(
        `Cannot order the graph: a '${node.primitive}' node precedes one of its operands`,
        node.span,
      );
    }
    checkNode(node);
    seen.add(node);
  }
  const results = [
    ...Object.values(graph.outputs),
    ...Object.values(graph.states),
  ];
  for (const node of results) {
    if (!seen.has(node)) {
      throw new ModelError(
        `Cannot return a '${node.primitive}' node: it is not in the graph`,
        node.span,
      );
    }
  }
  checkDispatched(graph.nodes, results, { dispatched: [] });
  deriveSizes(graph.axes, graph.nodes);
}

function checkNode(node: Node): void {
  let type: TensorType;
  try {
    type = (RULES[node.primitive] as AnyRule)({
      inputs: node.inputs,
      params: node.params,
      given: node,
    });
  } catch (error) {
    if (error instanceof RuleError) {
      throw new ModelError(error.message, node.span);
    }
    throw error;
  }
  if (!sameAxes(type.axes, node.axes) || type.dtype !== node.dtype) {
    throw new ModelError(
      `Cannot make a '${node.primitive}' node of ${node.dtype}[${
        node.axes.join(" ")
      }]: its rule says ${type.dtype}[${type.axes.join(" ")}]`,
      node.span,
    );
  }
}
