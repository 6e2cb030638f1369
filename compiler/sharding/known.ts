/** Facts about model and mesh for sharding rules. */

import { ModelError } from "../../spec/errors.ts";
import type { Node } from "../graph/graph.ts";
import {
  type AxisFacts,
  isRagged,
  outermostOf,
  placedOver,
} from "./local_axes.ts";
import type { Known } from "../graph/sharding_rule.ts";

/** Collects the facts for rules. `sharded`: the sharding of tokens and experts during expert computation. */
export function knownOf(
  facts: AxisFacts,
  sharded: Pick<Known, "tokensOver" | "expertsOver">,
): Known {
  return {
    ...sharded,
    fills({ axis, start, step, to }) {
      const { [axis]: part, [to]: all } = facts.graph.axes;
      return !isRagged(facts, axis) && start < step &&
        part!.size * step === all!.size;
    },
    isRagged: (axis) => isRagged(facts, axis),
    outermost: (axes) => outermostOf(facts.graph.axes, axes),
    placedOver: (axis) => placedOver(facts, axis),
    sequenceOver: (node, by, axis) => sequenceOver(facts, node, by, axis),
    itemsOver(axis, ids) {
      const follows = facts.followers.get(ids.axes[0] ?? "");
      const here = follows?.of === axis && ids.primitive === "input" &&
        follows.input === ids.params.name;
      return here ? placedOver(facts, axis) : undefined;
    },
    isGroupTogether(axis, group) {
      const input = facts.assigning.get(axis);
      return group?.primitive === "input" && input === group.params.name;
    },
  };
}

/** The placement of tokens, if it keeps those of one sequence on one rank. Throws ModelError. */
function sequenceOver(
  facts: AxisFacts,
  node: Node,
  by: Node,
  axis: string,
): readonly string[] {
  const over = placedOver(facts, axis);
  if (over.length === 0 || !by.axes.includes(axis)) return over;
  const cannot = `Cannot place axis '${axis}' over '${
    over.join("+")
  }': attention needs`;
  if (by.primitive !== "input") {
    throw new ModelError(
      `${cannot} tokens of one sequence on one rank, and which those are is computed. Give it as an input, or leave the axis unplaced`,
      node.span,
    );
  }
  const input = facts.assigning.get(axis);
  if (input === by.params.name) return over;
  throw new ModelError(
    `${cannot} tokens with one '${by.params.name}' on one rank, and they are assigned by ${
      input === undefined ? "blocks" : `'${input}'`
    }. Use one input for both, or leave the axis unplaced`,
    node.span,
  );
}
