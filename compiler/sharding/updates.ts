/**
 * What updates parameters: gradients, and what is done with them. Along mesh axes where every rank has the same parameter
 * they are terms of a sum, and each rank is given the sum of a part (reduce-scatter).
 */

import { groupSizeOf } from "../../spec/mesh.ts";
import type { Graph, Node } from "../graph/graph.ts";
import { sameAxes } from "../graph/operands.ts";
import { routeOperand } from "../graph/routing.ts";
import { type AxisFacts, isRagged } from "./local_axes.ts";
import { overOf, type Sharding } from "../graph/sharding.ts";

/** An axis of a gradient, and the mesh axes that it is sharded over when terms are added up. */
export interface Partition {
  readonly axis: string;
  readonly over: readonly string[];
}

/**
 * What the next values of parameters are made of element by element, each with its parameter. What those are made of is
 * not there, nor is a selection bias: of its load, a number for each expert, every rank needs all.
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
 * Along which axis the terms of a gradient are added up: the first of the replicated ones of which a rank has least.
 * Undefined where none has an item for each rank.
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
    // Experts are assigned evenly or by a table, and not in equal blocks of which the last may be short.
    (!experts.has(axis) ||
      size(axis) % groupSize === 0 && !requests.get(axis)?.table)
  );
  const share = (axis: string) =>
    Math.ceil(size(axis) / groupSize) / size(axis);
  const min = Math.min(...free.map(share));
  const axis = free.find((axis) => share(axis) === min);
  return axis === undefined ? undefined : { axis, over: unreduced };
}
