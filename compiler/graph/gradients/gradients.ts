/** Differentiation: adds the gradients of a loss to its graph. */

import { ModelError } from "../../../spec/errors.ts";
import {
  type Cotangents,
  type DerivativeInput,
  DERIVATIVES,
} from "./derivatives.ts";
import type {
  Graph,
  Lambda,
  Node,
  NodeOf,
  Primitive,
  ScalarFunction,
} from "../graph.ts";
import {
  type BuilderContext,
  builderContext,
  NodeBuilder,
} from "./node_builder.ts";
import { repeat } from "../repeat.ts";
import { deriveSizes } from "../sizes.ts";
import { inOrder } from "../trace.ts";

/** The scalar functions of a graph's lambdas, as `lowerScalars` finds them. */
export type Scalars = ReadonlyMap<Lambda, ScalarFunction>;

/** Options of `gradients`. */
export interface GradientOptions {
  readonly scalars?: Scalars;
  /** Whether `recompute` blocks are recomputed instead of saved. Default: true. */
  readonly repeats?: boolean;
}

/** Context of all derivatives of a graph. */
interface Derivation {
  readonly context: BuilderContext;
  readonly scalars: Scalars;
  /** Blocks are recomputed. */
  readonly repeats: boolean;
}

/**
 * The derivative of `loss`, a scalar, by each of `by`: nodes over the same inputs, with the same axes.
 *
 * Throws ModelError if a node in between has no derivative, or if the loss is not a scalar.
 */
export function gradients(
  { axes, nodes }: Pick<Graph, "axes" | "nodes">,
  loss: Node,
  by: readonly Node[],
  { scalars = new Map(), repeats = true }: GradientOptions = {},
): readonly Node[] {
  if (loss.axes.length > 0 || loss.dtype !== "f32") {
    throw new ModelError(
      `Cannot differentiate ${loss.dtype}[${
        loss.axes.join(" ")
      }]: a loss is one number${
        loss.dtype === "f32"
          ? ". Sum it, or take its mean"
          : " in f32. Compute it in f32"
      }`,
      loss.span,
    );
  }
  const derivation = {
    context: builderContext(axes, nodes, "backward"),
    scalars,
    repeats,
  };
  const b = new NodeBuilder(derivation.context, loss);
  const found = pullBack(derivation, loss, {
    cotangent: b.constant(1, loss),
    to: new Set(by),
  });
  return by.map((node) => found.get(node) ?? b.constant(0, node));
}

/** Adds an output per gradient of the output `loss`: `grad.` and the name of the parameter. */
export function withGradients(
  graph: Graph,
  loss: string,
  options: GradientOptions = {},
): Graph {
  const of = graph.outputs[loss];
  if (of === undefined) {
    throw new ModelError(
      `Cannot differentiate output '${loss}': the graph has no such output`,
      undefined,
    );
  }
  const params = graph.nodes.filter((node) => node.primitive === "param");
  const found = gradients(graph, of, params, options);
  const outputs = {
    ...graph.outputs,
    ...Object.fromEntries(
      params.map((node, i) => [`grad.${node.params.name}`, found[i]!]),
    ),
  };
  const nodes = inOrder([
    ...Object.values(graph.outputs),
    ...[...found].reverse(),
    ...Object.values(outputs),
    ...Object.values(graph.states),
  ]);
  const axes = deriveSizes(graph.axes, nodes);
  return { axes, nodes, outputs, states: graph.states };
}

/** The nodes that depend on one of `on` through floats, of `nodes` in order. */
function dependents(
  nodes: readonly Node[],
  on: ReadonlySet<Node>,
): Set<Node> {
  const found = new Set<Node>();
  for (const node of nodes) {
    if (
      on.has(node) || isFloat(node) && node.inputs.some((x) => found.has(x))
    ) {
      found.add(node);
    }
  }
  return found;
}

/** Whether `loss` depends on one of `by` through floats, so that it can have a gradient. */
export function hasGradient(loss: Node, by: readonly Node[]): boolean {
  return dependents(inOrder([loss]), new Set(by)).has(loss);
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
  const needed = dependents(nodes, to);
  const cotangents = new Map<Node, Node>([[from, cotangent]]);
  const add = (input: Node, change: Node, b: NodeBuilder): void => {
    const before = cotangents.get(input);
    cotangents.set(input, before ? b.add(before, change) : change);
  };
  /** Cotangents of the operands of a node. `copies` replace some of them. */
  const step = (node: Node, copies: ReadonlyMap<Node, Node> = NONE): void => {
    const dy = cotangents.get(node);
    if (dy === undefined || !needed.has(node) || to.has(node)) return;
    const b = new NodeBuilder(derivation.context, node);
    if (
      derivation.repeats && node.primitive === "optimizationBarrier" &&
      node.params.end === "out"
    ) return stepRecomputed(node, dy, b);
    const made = derive(derivation, node, { dy, b });
    for (const [i, input] of node.inputs.entries()) {
      const change = needed.has(input) ? made[i]?.() : undefined;
      if (change !== undefined) add(copies.get(input) ?? input, change, b);
    }
  };
  const stepRecomputed = (
    end: NodeOf<"optimizationBarrier">,
    dy: Node,
    b: NodeBuilder,
  ): void => {
    const { inside, copies } = repeat(end, dy, b);
    for (const [first, copy] of copies) {
      if (needed.has(first)) needed.add(copy);
    }
    const [y] = end.inputs as [Node];
    add(copies.get(y) ?? y, dy, b);
    for (const first of [...inside].reverse()) {
      const copy = copies.get(first);
      if (
        copy &&
        (copy.primitive !== "optimizationBarrier" ||
          first.primitive === "optimizationBarrier")
      ) {
        step(copy);
        continue;
      }
      // The node is not recomputed, but its operands are.
      const change = copy && cotangents.get(copy);
      if (change) add(first, change, b);
      step(first, copies);
      cotangents.delete(first);
    }
  };
  for (const node of nodes.reverse()) step(node);
  return cotangents;
}

const NONE: ReadonlyMap<Node, Node> = new Map();

function isFloat({ dtype }: Node): boolean {
  return dtype === "f32" || dtype === "f16";
}

/** Applies the derivative of a node's primitive. */
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
