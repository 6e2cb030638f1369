/**
 * Parameters without a gradient: selection biases of routers, which balance experts without a loss, indexers, and
 * tables of integers.
 */

import { expr } from "../../spec/kernel/text/resolve.ts";
import type { Node, NodeOf } from "./graph.ts";
import type { NodeBuilder } from "./gradients/node_builder.ts";
import { routeOperand } from "./routing/presets.ts";

/** The parameters that are used only as selection biases, with their routers. */
export function selectionBiases(
  nodes: readonly Node[],
): Map<NodeOf<"param">, NodeOf<"route">[]> {
  const found = new Map<NodeOf<"param">, NodeOf<"route">[]>();
  const others = new Set<Node>();
  for (const node of nodes) {
    const bias = node.primitive === "route"
      ? routeOperand(node, "bias")
      : undefined;
    for (const input of node.inputs) {
      if (input !== bias || node.primitive !== "route") others.add(input);
      else if (input.primitive === "param") {
        found.set(input, [...found.get(input) ?? [], node]);
      }
    }
  }
  for (const bias of found.keys()) {
    if (others.has(bias)) found.delete(bias);
  }
  return found;
}

/**
 * The parameters that determine a value only through `selectKeys` or `selectBlocks`, such as those of an indexer, and
 * integers. The choice has no derivative, so training by that value leaves them constant.
 */
export function constantParams(
  nodes: readonly Node[],
  value: Node,
): Set<Node> {
  const derived = new Set<Node>([value]);
  const selecting = new Set<Node>();
  // Users follow their operands.
  for (const node of nodes.toReversed()) {
    if (!derived.has(node) && !selecting.has(node)) continue;
    const selects = node.primitive === "selectKeys" ||
      node.primitive === "selectBlocks";
    const through = !selects && derived.has(node);
    for (const input of node.inputs) (through ? derived : selecting).add(input);
  }
  return new Set(
    nodes.filter((node) =>
      node.primitive === "param" &&
      (node.dtype === "i32" || selecting.has(node) && !derived.has(node))
    ),
  );
}

/** `rate · sign(mean load - load)` per expert. The load is a count of choices. */
export function biasStep(b: NodeBuilder, load: Node, rate: number): Node {
  const [expert] = load.axes as [string];
  const mean = b.make("reduce", [load], { kind: "mean", over: expert });
  return b.map(
    (n, mean) => expr`sign(${mean} - ${n}) * ${rate}`,
    load,
    mean,
  );
}
