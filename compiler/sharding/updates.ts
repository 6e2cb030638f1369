/**
 * Updates of parameters: gradients and the ops on them. Along mesh axes that replicate the parameter, gradients are
 * terms of a sum, and each rank receives the sum of a shard (reduce-scatter).
 */

import { groupSizeOf } from "../../spec/mesh.ts";
import type { Graph, Node } from "../graph/graph.ts";
import { sameAxes } from "../graph/operands.ts";
import { routeOperand } from "../graph/routing/presets.ts";
import { type AxisFacts, isRagged } from "./local_axes.ts";
import { overOf, type Sharding } from "../graph/sharding.ts";

/** An axis of a gradient, and the mesh axes that shard it when terms are reduced. */
export interface Partition {
  readonly axis: string;
  readonly over: readonly string[];
}

/**
 * The elementwise inputs of the next values of parameters, each with its parameter. Their own inputs are excluded, and
 * so are selection biases: every rank needs the loads of all experts.
 */
export function updateValues({ nodes, states }: Graph): Map<Node, Node> {
  const found = new Map<Node, Node>();
  const biases = new Set<Node | undefined>(
    nodes.map((node) =>
      node.primitive === "route" ? routeOperand(node, "bias") : undefined
    ),
  );
  for (const parameter of nodes) {
    if (parameter.primitive !== "param" || biases.has(parameter)) continue;
    const visit = (node: Node): void => {
      if (node === parameter || found.has(node)) return;
      if (!sameAxes(node.axes, parameter.axes)) return;
      found.set(node, parameter);
      if (node.primitive === "map" || node.primitive === "cast") {
        node.inputs.forEach(visit);
      }
    };
    const next = states[parameter.params.name];
    if (next) visit(next);
  }
  return found;
}

/**
 * The axis along which the terms of a gradient are scattered: the first replicated axis with the shortest local length.
 * Undefined if no axis has an item per rank.
 */
export function partitionOf(
  facts: AxisFacts,
  parameter: Node,
  { over, unreduced }: Sharding,
): Partition | undefined {
  const { graph, mesh, experts, requests } = facts;
  const groupSize = groupSizeOf(mesh, unreduced);
  const size = (axis: string) => graph.axes[axis]!.size;
  const free = parameter.axes.filter((axis) =>
    overOf({ over }, axis).length === 0 && !isRagged(facts, axis) &&
    size(axis) >= groupSize &&
    // Experts are assigned evenly or by a table, not in equal blocks with a short last one.
    (!experts.has(axis) ||
      size(axis) % groupSize === 0 && !requests.get(axis)?.table)
  );
  const share = (axis: string) =>
    Math.ceil(size(axis) / groupSize) / size(axis);
  const min = Math.min(...free.map(share));
  const axis = free.find((axis) => share(axis) === min);
  return axis === undefined ? undefined : { axis, over: unreduced };
}
