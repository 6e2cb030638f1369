/** Differentiation: from a graph with a loss to the graph that has the gradients of the loss too. */

import { ModelError } from "../../spec/errors.ts";
import {
  type Cotangents,
  type DerivativeInput,
  DERIVATIVES,
} from "./derivatives.ts";
import type {
  Graph,
  Lambda,
  Node,
  Primitive,
  ScalarFunction,
} from "./graph.ts";
import {
  type BuilderContext,
  builderContext,
  NodeBuilder,
} from "./node_builder.ts";
import { deriveSizes } from "./sizes.ts";
import { inOrder } from "./trace.ts";

/** The scalar functions of a graph's lambdas, as `lowerScalars` finds them. */
export type Scalars = ReadonlyMap<Lambda, ScalarFunction>;

/** What all derivatives of a graph are made with. */
interface Derivation {
  readonly context: BuilderContext;
  readonly scalars: Scalars;
}

/**
 * The derivative of `loss`, a number, by each of `by`: nodes over the same inputs, in the axes of those.
 *
 * Throws ModelError where something in between has no derivative, or the loss is no number.
 */
export function gradients(
  { axes, nodes }: Pick<Graph, "axes" | "nodes">,
  loss: Node,
  by: readonly Node[],
  scalars: Scalars = new Map(),
): readonly Node[] {
  if (loss.axes.length > 0 || loss.dtype !== "f32") {
    throw new ModelError(
      `Cannot differentiate ${loss.dtype}[${
        loss.axes.join(" ")
      }]: a loss is one number. Sum it, or take its mean`,
      loss.span,
    );
  }
  const derivation = {
    context: builderContext(axes, nodes, "backward"),
    scalars,
  };
  const b = new NodeBuilder(derivation.context, loss.span);
  const found = pullBack(derivation, loss, {
    cotangent: b.constant(1, loss),
    to: new Set(by),
  });
  return by.map((node) => found.get(node) ?? b.constant(0, node));
}

/** The graph with an output for each gradient of its output `loss`: `grad.` and the name of the parameter. */
export function withGradients(
  graph: Graph,
  loss: string,
  scalars: Scalars = new Map(),
): Graph {
  const of = graph.outputs[loss];
  if (of === undefined) {
    throw new ModelError(
      `Cannot differentiate output '${loss}': the graph has no such output`,
      undefined,
    );
  }
  const params = graph.nodes.filter((node) => node.primitive === "param");
  const found = gradients(graph, of, params, scalars);
  const outputs = {
    ...graph.outputs,
    ...Object.fromEntries(
      params.map((node, i) => [`grad.${node.params.name}`, found[i]!]),
    ),
  };
  const nodes = inOrder([
    ...Object.values(outputs),
    ...Object.values(graph.states),
  ]);
  const axes = deriveSizes(graph.axes, nodes);
  return { axes, nodes, outputs, states: graph.states };
}

/** The cotangents of the nodes `to`, given that of `from`. */
function pullBack(
  derivation: Derivation,
  from: Node,
  { cotangent, to }: {
    readonly cotangent: Node;
    readonly to: ReadonlySet<Node>;
  },
): Map<Node, Node> {
  const nodes = inOrder([from]);
  const needed = new Set<Node>();
  for (const node of nodes) {
    if (
      to.has(node) || isFloat(node) && node.inputs.some((x) => needed.has(x))
    ) {
      needed.add(node);
    }
  }
  const cotangents = new Map<Node, Node>([[from, cotangent]]);
  for (const node of nodes.reverse()) {
    const dy = cotangents.get(node);
    if (dy === undefined || !needed.has(node) || to.has(node)) continue;
    const b = new NodeBuilder(derivation.context, node.span);
    const made = derive(derivation, node, { dy, b });
    for (const [i, input] of node.inputs.entries()) {
      const change = needed.has(input) ? made[i]?.() : undefined;
      if (change === undefined) continue;
      const before = cotangents.get(input);
      cotangents.set(input, before ? b.add(before, change) : change);
    }
  }
  return cotangents;
}

function isFloat({ dtype }: Node): boolean {
  return dtype === "f32" || dtype === "f16";
}

/** Apply the derivative of a node's primitive. */
function derive(
  derivation: Derivation,
  node: Node,
  at: Pick<DerivativeInput<Primitive>, "dy" | "b">,
): Cotangents {
  const rule = DERIVATIVES[node.primitive] as (
    input: DerivativeInput<Primitive>,
  ) => Cotangents;
  return rule({
    ...at,
    node,
    scalar(lambda) {
      const fn = lambda.lowered ?? derivation.scalars.get(lambda);
      if (fn) return fn;
      throw new ModelError(
        "Cannot differentiate a function of the model: it is not lowered",
        lambda.span,
      );
    },
    pull: (from, dy, to) =>
      pullBack(derivation, from, { cotangent: dy, to: new Set([to]) }).get(to),
  });
}
