/** Decides when a dispatch is deduplicated: a token is sent at most once per rank. */

import { expectedDestinations } from "../../spec/plan/bytes.ts";
import { wireWords } from "../../spec/wire.ts";
import {
  type Graph,
  isWeighted,
  type Node,
  type RoutingNode,
} from "../graph/graph.ts";
import type { Placed } from "../sharding/placed.ts";
import { chunkExperts, heldExperts, unitSplits } from "./expert_ranges.ts";

/** Minimum savings of deduplication, per token, that justify one or two more small exchanges. */
const MIN_SHARE = 0.25, MIN_BYTES = 1024;

/** Whether a dispatch is deduplicated: if it can be, and if it is requested or worthwhile. */
export function deduplicates(
  graph: Graph,
  route: RoutingNode,
  { placed, splits, chunks, asked }: {
    readonly placed: Placed;
    readonly splits: readonly number[];
    readonly chunks: number;
    readonly asked: boolean | undefined;
  },
): boolean {
  const { topK } = route.params.rule;
  const value = graph.nodes.find((user) =>
    user.primitive === "dispatch" && user.inputs[1] === route &&
    !isWeighted(user)
  );
  const units = unitSplits(chunkExperts(splits, chunks));
  const can = splits.length > 2 && topK > 1 &&
    Math.max(...heldExperts(units)) > 1;
  if (!value || !can) return false;
  if (asked !== undefined) return asked;
  const lengths = value.axes.slice(2).map((axis) => placed.axes[axis]!.size);
  const elements = lengths.reduce((n, length) => n * length, 1);
  const [x] = value.inputs as [Node];
  const last = lengths.at(-1)!;
  const rowBytes = 4 *
    (x.primitive === "round"
      ? elements / last * wireWords(x.params.format, last)
      : elements);
  const saved = topK - expectedDestinations(units, topK);
  return saved >= topK * MIN_SHARE && saved * rowBytes >= MIN_BYTES;
}
