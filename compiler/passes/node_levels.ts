/** Levels of an exchange whose experts are over nodes and the ranks of a node. */

import { ModelError } from "../../spec/errors.ts";
import { groupSizeOf, NODE_AXIS } from "../../spec/mesh.ts";
import type { Node } from "../graph/graph.ts";
import type { ExpandOptions } from "./routed.ts";
import { splitsOf } from "./expert_ranges.ts";

/** An exchange over mesh axes. Experts splits[p] to splits[p + 1] belong to group rank p. */
export interface Level {
  readonly over: readonly string[];
  readonly splits: readonly number[];
}

/**
 * The exchange of a dispatch between nodes, and the one within a node, with the experts of a node. Undefined: one
 * exchange suffices, or the experts are not divided equally on all nodes. Throws ModelError for chunks.
 */
export function nodeLevels(
  { axes: [expert], span }: Node,
  { placed, chunks }: Pick<ExpandOptions, "placed" | "chunks">,
): { readonly nodes: Level; readonly ranks: Level } | undefined {
  const [node, ...over] = placed.axes[expert!]!.over;
  if (node !== NODE_AXIS) return undefined;
  const [nodes, ranks] = [[node], over].map((axes) =>
    groupSizeOf(placed.mesh, axes)
  ) as [number, number];
  if (nodes === 1 || ranks === 1) return undefined;
  const splits = splitsOf(placed, expert!);
  const [ends, local] = [
    splits.filter((_, p) => p % ranks === 0),
    splits.slice(0, ranks + 1),
  ];
  const equal = splits.every((end, p) =>
    end === Math.floor(p / ranks) * local.at(-1)! + local[p % ranks]!
  );
  if (equal && chunks > 1) {
    throw new ModelError(
      "Cannot split a dispatch into chunks: it is over nodes. Compile with one chunk, or without the mesh axis 'node'",
      span,
    );
  }
  return equal
    ? { nodes: { over: [node], splits: ends }, ranks: { over, splits: local } }
    : undefined;
}
