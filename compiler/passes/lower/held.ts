/** Weights and states of a graph: the memory that a rank needs for as long as the plan is loaded. */

import { isIn } from "../../../spec/mesh.ts";
import { onRank, type PerRank, perRank } from "../../../spec/per_rank.ts";
import { range } from "../../../spec/range.ts";
import type { Graph, Node } from "../../graph/graph.ts";
import { usersOf } from "../../graph/users.ts";
import type { Lowering } from "./lowering.ts";
import { ranksOf } from "./context.ts";
import { addSource, stageOfNodes } from "./mod.ts";
import { addParam } from "./params/params.ts";

/** The buffer of a weight or a state. */
export interface HeldBuffer {
  readonly name: string;
  readonly kind: "param" | "state";
  /** 0 on ranks of other stages. */
  readonly bytes: PerRank;
}

/**
 * Adds the buffers of weights and states to a lowering without results. Returns them, as plans have them: on the ranks
 * of the stages that read them.
 */
export function lowerHeld(lowering: Lowering): HeldBuffer[] {
  const { placed, model: { graph }, draft: { buffers } } = lowering;
  const readers = readingStages(graph);
  const all: HeldBuffer[] = [];
  for (const node of graph.nodes) {
    const { primitive: kind } = node;
    if (kind !== "param" && kind !== "state") continue;
    const known = buffers.size;
    if (kind === "param") addParam(lowering, node);
    else addSource(lowering, node, "state");
    const on = ranksOf(placed, [...readers.get(node) ?? []]);
    for (const { name, bytes } of [...buffers.values()].slice(known)) {
      const held = range(placed.ranks).map((rank) =>
        isIn(on, placed.mesh, rank) ? onRank(bytes, rank) : 0
      );
      all.push({ name, kind, bytes: perRank(held) });
    }
  }
  return all;
}

/** The stages that read each value: those of its users and of the users of its views. */
function readingStages(graph: Graph): Map<Node, ReadonlySet<number>> {
  const stages = stageOfNodes(graph);
  const users = usersOf(graph);
  const found = new Map<Node, ReadonlySet<number>>();
  for (const node of graph.nodes.toReversed()) {
    const all = (users.get(node) ?? []).flatMap((user) => {
      const stage = stages.get(user);
      return stage === undefined ? [...found.get(user) ?? []] : [stage];
    });
    found.set(node, new Set(all));
  }
  return found;
}
