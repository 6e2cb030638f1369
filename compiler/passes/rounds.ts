/** Decides whether a dispatch is received in rounds: if its receive buffers have no room for the worst case. */

import { ModelError } from "../../spec/errors.ts";
import { receiveRows } from "../../spec/plan/rounds.ts";
import type { Node, PrimitiveParams, RoutingNode } from "../graph/graph.ts";
import { groupBound } from "../sharding/lengths.ts";
import type { ExpandOptions } from "./routed.ts";
import { heldExperts, splitsOf } from "./expert_ranges.ts";

/**
 * The rounds of a dispatch. Undefined: all rows are received at once. Throws ModelError if another option needs all
 * rows at once.
 */
export function roundsOf(
  node: Node,
  route: RoutingNode,
  { placed, chunks, deduplicate, check, over, receiveRows: given }:
    & ExpandOptions
    & {
      /** Mesh axes of the exchange. */
      readonly over: readonly string[];
    },
): PrimitiveParams["rounds"] | undefined {
  if (given === undefined) return undefined;
  const { tokens, rule: { topK } } = route.params;
  const [expert] = node.axes as [string];
  const sources = placed.axes[expert]!.over;
  const all = tokens.reduce((n, t) => n * groupBound(placed, t, sources), 1);
  const held = heldExperts(splitsOf(placed, expert));
  const rows = receiveRows(given, all * topK / held.length);
  const maxRows = all * Math.min(topK, Math.max(...held));
  if (rows >= maxRows) return undefined;
  const other = chunks > 1
    ? "in chunks"
    : deduplicate
    ? "deduplicated"
    : check
    ? "with a check"
    : undefined;
  if (other === undefined) return { over, rows, maxRows };
  throw new ModelError(
    `Cannot receive the rows of a dispatch in rounds: it is ${other}. Compile without one of the two`,
    node.span,
  );
}
