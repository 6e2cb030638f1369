/** The collectives of a routing: counts to everyone, rows to the ranks that own their experts and back. */

import { positionsOver } from "../../../spec/mesh.ts";
import type { StepPart } from "../../../spec/plan.ts";
import type { Node } from "../../graph/graph.ts";
import {
  about,
  addScratch,
  type Lowering,
  type RoutingBuffers,
} from "./context.ts";

/** Counts that every rank has, and where those of all ranks go. */
export interface CountsExchange {
  readonly from: string;
  readonly to: string;
  /** How many each rank has: one for each column, or for each position. */
  readonly words: number;
  readonly part: StepPart;
}

/** Every rank of a routing's group learns the counts of every other. */
export function emitCountsExchange(
  lowering: Lowering,
  node: Node,
  { over }: RoutingBuffers,
  { from, to, words, part }: CountsExchange,
): void {
  lowering.steps.push({
    op: "allGather",
    ranks: "all",
    ...{ over, from, to },
    bytes: words * 4,
    ...about(lowering, node, part),
  });
}

/** Rows of `words` words, from one buffer into another on the ranks that they go to. */
export interface Exchange {
  readonly from: string;
  readonly to: string;
  readonly words: number;
  readonly direction: "forward" | "back";
  /** Rows are tokens, each once for a position. */
  readonly once?: boolean;
  /** Only start it, under this name. */
  readonly handle?: string;
  readonly part?: StepPart;
}

/** Add an exchange over the group of a routing, of the rows of its chunk. */
export function emitExchange(
  lowering: Lowering,
  node: Node,
  routing: RoutingBuffers,
  what: Exchange,
): void {
  const { from, to, words, direction, handle, part } = what;
  const positions = positionsOver(lowering.placed.mesh, routing.over);
  const once = what.once ? routing.once : undefined;
  const { columns } = routing;
  // One column for each position.
  const splits = once
    ? Array.from({ length: positions + 1 }, (_, p) => p)
    : routing.splits;
  const moved = addScratch(lowering, `moved ${direction}`, "u32", [{
    axis: "position",
    size: positions,
  }]);
  lowering.steps.push({
    op: "allToAll",
    ranks: "all",
    over: routing.over,
    direction,
    from,
    to,
    rowBytes: words * 4,
    counts: once?.reachAll ?? routing.countsAll,
    splits,
    ...columns ? { columns } : {},
    position: routing.position,
    moved,
    pairRows: (once ?? routing).pairSize,
    ...handle === undefined ? {} : { handle },
    ...about(lowering, node, part),
  });
}
