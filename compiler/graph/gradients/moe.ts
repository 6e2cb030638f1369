/**
 * Derivatives of routing. The derivative of a dispatch is a combine; the derivative of a combine is a dispatch of its
 * cotangent. The cotangent of a weight is the product of a returned row and its cotangent. Rows returned by the forward
 * pass are saved, so that none is sent twice. Routers are differentiated through their weights only, never through the
 * choice.
 */

import { expr } from "../../../spec/kernel/text/resolve.ts";
import type { Expr } from "../../../spec/kernel/tree.ts";
import type { Cotangents, DerivativeInput } from "./derivatives.ts";
import { isWeighted, type Node, type NodeOf } from "../graph.ts";
import { without } from "../messages.ts";
import type { NodeBuilder } from "./node_builder.ts";
import { routeOperand } from "../routing/presets.ts";

/** The cotangent of weights: the rows of each choice times the value of their token. */
function ofWeights(
  b: NodeBuilder,
  rows: Node,
  value: Node,
  routing: Node,
): Node {
  const collected = b.make("combineTranspose", [rows, routing], {});
  const over = without(value.axes, routing.axes);
  return over.length === 0
    ? b.map((x, y) => expr`${x} * ${y}`, collected, value)
    : b.make("dot", [collected, value], { over });
}

/** Combines the cotangent with the weights of the dispatch. */
export function dispatchDerivative(
  { node, dy, b }: DerivativeInput<"dispatch">,
): Cotangents {
  const [x, routing] = node.inputs as [Node, Node];
  const weighted = isWeighted(node);
  return [
    () => b.make("combine", [dy, routing], { weighted }),
    weighted ? () => ofWeights(b, dy, x, routing) : undefined,
  ];
}

/** Dispatches the cotangent with the weights of the combine. */
export function combineDerivative(
  { node, dy, b }: DerivativeInput<"combine">,
): Cotangents {
  const [y, routing] = node.inputs as [Node, Node];
  const weighted = isWeighted(node);
  return [
    () => b.make("dispatch", [dy, routing], { weighted }),
    weighted ? () => ofWeights(b, y, dy, routing) : undefined,
  ];
}

/** Differentiates through the weights to the logits, or to given weights. */
export function routeDerivative(
  { node, dy, b, pull }: DerivativeInput<"route">,
): Cotangents {
  const from = routeOperand(node, "weights") ?? node.inputs[0];
  return node.inputs.map((input) =>
    input === from ? () => pull(routeWeights(node, b), dy, input) : undefined
  );
}

/** The weights of a router, computed from its logits and choices by differentiable primitives. */
function routeWeights(node: NodeOf<"route">, b: NodeBuilder): Node {
  const { rule } = node.params;
  const raw = scores(node, b);
  const dropping = rule.capacity !== undefined ||
    routeOperand(node, "mask") !== undefined;
  const mask = dropping
    ? b.cast(b.make("tupleElement", [node], { field: "slot" }), "f32")
    : undefined;
  const masked = (x: Node) =>
    mask
      ? b.map(
        (v, slot) => expr`select(${v}, 0, ${slot} < 0)`,
        x,
        mask,
      )
      : x;
  const scaled = (x: Expr) =>
    rule.scale === undefined ? x : expr`${x} * ${rule.scale}`;
  if (rule.normalize === "none") {
    return masked(
      rule.scale === undefined ? raw : b.map((x) => scaled(x!), raw),
    );
  }
  const summed = rule.normalize === "kept" ? masked(raw) : raw;
  const { epsilon = 0, minSum } = rule;
  const divisor = (total: Expr) => {
    const sum = expr`${total} + ${epsilon}`;
    return minSum === undefined ? sum : expr`max(${sum}, ${minSum})`;
  };
  const sum = b.make("reduce", [summed], {
    kind: "sum",
    over: node.params.choice,
  });
  const divided = b.map(
    (x, total) => scaled(expr`${x} / ${divisor(total!)}`),
    summed,
    sum,
  );
  return rule.normalize === "kept" ? divided : masked(divided);
}

/** Scores of the chosen experts. */
function scores(node: NodeOf<"route">, b: NodeBuilder): Node {
  const weights = routeOperand(node, "weights");
  if (weights) return weights;
  const { rule, expert, choice } = node.params;
  const logits = node.inputs[0]!;
  const index = b.make("tupleElement", [node], { field: "index" });
  const pick = (x: Node) => b.make("embedding", [x, index], { over: expert });
  switch (rule.score) {
    case "softmax":
      return pick(b.make("softmax", [logits], { over: expert }));
    case "chosenSoftmax":
      return b.make("softmax", [pick(logits)], { over: choice });
    case "sigmoid":
      return b.map(
        (x) => expr`1.0 / (1.0 + exp(-${x}))`,
        pick(logits),
      );
    case "sqrtSoftplus":
      return b.map(
        (x) => expr`sqrt(max(${x}, 0.0) + log(1.0 + exp(-abs(${x}))))`,
        pick(logits),
      );
    case "none":
      return pick(logits);
  }
}
