/**
 * Localize: rewrites the graph for one rank. Every axis of a value becomes its local axis, so that later passes know
 * sizes and no mesh. Postcondition: an axis has one length on a rank, in all values.
 */

import { isCollective } from "../graph/collectives.ts";
import { rankCount } from "../../spec/mesh.ts";
import { renameAxes } from "../graph/axis_params.ts";
import type { AxisSize, Graph, Node } from "../graph/graph.ts";
import type { Placed } from "./placed.ts";
import { type AxisFacts, type LocalAxis, localAxis } from "./local_axes.ts";
import { localName, type Over, overOf } from "../graph/sharding.ts";

/** A graph over local axes, and these axes. */
export interface Localized {
  readonly graph: Graph;
  readonly placed: Placed;
}

/** Renames every axis of every value to its local axis. */
export function localize(facts: AxisFacts, sharded: Graph): Localized {
  const axes: { [name: string]: AxisSize } = {};
  const local: { [name: string]: LocalAxis } = {};
  const counted = new Map<string, string>();
  const name = (axis: string, over: readonly string[]): string => {
    // The slot axis of a routing has no length.
    if (!facts.graph.axes[axis]) return axis;
    const found = localName(axis, over);
    if (found in local) return found;
    const entry = localAxis(facts, axis, over);
    local[found] = entry;
    axes[found] = { size: entry.size, dynamic: entry.dynamic };
    // The axis that determines its assignment must exist too.
    const { by } = entry;
    if (by) name(by.axis, by.over);
    return found;
  };
  const now = new Map<Node, Node>();
  const nodes = sharded.nodes.map((node) => {
    const inputs = node.inputs.map((input) => now.get(input)!);
    const over = overOfNode(node);
    const rename = (axis: string) => name(axis, overOf({ over }, axis));
    const made = {
      ...node,
      inputs,
      axes: node.axes.map((axis) => name(axis, overOf(node.sharding!, axis))),
      params: isCollective(node.primitive)
        ? movedParams(node, name)
        : renameAxes(node.params, rename),
    } as Node;
    now.set(node, made);
    if (made.primitive === "rename" && axes[made.params.from]?.dynamic) {
      const { from, to } = made.params;
      counted.set(to, counted.get(from) ?? from);
    }
    return made;
  });
  const of = (named: { readonly [name: string]: Node }) =>
    Object.fromEntries(
      Object.entries(named).map(([key, node]) => [key, now.get(node)!]),
    );
  // Every axis of the model is in the plan: the caller's tensors have them.
  for (const axis of Object.keys(facts.graph.axes)) name(axis, []);
  const counts = Object.keys(local).filter((axis) =>
    local[axis]!.dynamic && !counted.has(axis)
  );
  return {
    graph: {
      axes,
      nodes,
      outputs: of(sharded.outputs),
      states: of(sharded.states),
    },
    placed: {
      mesh: facts.mesh,
      ranks: rankCount(facts.mesh),
      axes: local,
      counts,
      aliases: Object.fromEntries(counted),
    },
  };
}

/** The sharding of each axis of a node. */
function overOfNode({ inputs, sharding }: Node): Over {
  return Object.assign(
    {},
    ...inputs.map((input) => input.sharding!.over),
    sharding!.over,
  );
}

function movedParams(
  { params, inputs: [from], sharding }: Node,
  name: (axis: string, over: readonly string[]) => string,
): unknown {
  if (!("axis" in params) || !from) return params;
  const axis = params.axis;
  return {
    ...params,
    axis: name(axis, overOf(from.sharding!, axis)),
    to: name(axis, overOf(sharding!, axis)),
  };
}
