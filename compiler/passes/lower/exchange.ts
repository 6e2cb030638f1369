/** The collectives of a routing: counts to everyone, rows to the ranks that own their experts and back. */

import { positionsOver } from "../../../spec/mesh.ts";
import type { StepPart } from "../../../spec/plan.ts";
import type { Node } from "../../graph/graph.ts";
import { elementwiseGrid } from "../../kernels/elementwise.ts";
import { exchange, exchangeGrid, gather } from "../../kernels/exchange.ts";
import {
  about,
  addKernel,
  addScratch,
  type Lowering,
  type RoutingBuffers,
} from "./context.ts";

/** How many ranks' buffers one local launch reads: bindings are few. */
const FAN_IN = 4;

/** Every rank of the group learns what every other sends: rows for each column, or tokens for each position. */
export function emitCountsExchange(
  lowering: Lowering,
  node: Node,
  routing: RoutingBuffers,
  part: StepPart,
): void {
  const positions = positionsOver(lowering.placed.mesh, routing.over);
  const once = part.part === "exchange reach" ? routing.once : undefined;
  const words = once ? positions : routing.splits.at(-1)!;
  lowering.steps.push({
    op: "allGather",
    ranks: "all",
    over: routing.over,
    from: once?.reach ?? routing.counts,
    to: once?.reachAll ?? routing.countsAll,
    bytes: words * 4,
    local: localSources(positions).map((sources) => {
      const options = { name: `gather_${words}`, sources, words };
      return {
        kernel: addKernel(lowering, gather(options)),
        sources,
        workgroups: elementwiseGrid(words),
      };
    }),
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
    ...handle === undefined ? {} : { handle },
    local: localSources(positions).map((sources) => {
      const options = {
        name: `exchange_${once ? "once" : direction}_${words}`,
        sources,
        rowWords: words,
        splits,
        ...columns ? { columns } : {},
        direction,
      };
      return {
        kernel: addKernel(lowering, exchange(options)),
        sources,
        workgroups: exchangeGrid((once ?? routing).pairSize),
      };
    }),
    ...about(lowering, node, part),
  });
}

/** Group positions, as many at a time as one local launch reads. */
export function localSources(positions: number): number[][] {
  const all = Array.from({ length: positions }, (_, i) => i);
  return Array.from(
    { length: Math.ceil(positions / FAN_IN) },
    (_, i) => all.slice(i * FAN_IN, (i + 1) * FAN_IN),
  );
}
