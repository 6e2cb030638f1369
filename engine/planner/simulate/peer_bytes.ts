/** Bytes of an exchange by peer and by link. */

import {
  type LinkClass,
  linkClass,
  type RankPlacement,
} from "../../../spec/machine.ts";
import { movesTokens, shareOfExperts } from "../../../spec/plan/bytes.ts";
import type { CollectiveStep } from "../../../spec/plan/plan.ts";
import type { LevelTraffic } from "./exchange_time.ts";
import type { RoutingRows } from "./routings.ts";
import type { Lengths } from "./workload.ts";

/**
 * Bytes from a rank to each other rank of its group, in the busier direction: for the rank with the most, and for a
 * mean one.
 */
export function peerBytes(
  step: CollectiveStep,
  { lengths, rows, groupSize, rounds = 1 }: {
    readonly lengths: Lengths;
    readonly rows: RoutingRows | undefined;
    readonly groupSize: number;
    /** Rounds, each with a part of the rows. */
    readonly rounds?: number;
  },
): { readonly each: number; readonly mean: number } {
  if (step.op !== "allToAll") {
    const each = step.bytes * (step.rows ? lengths.max(step.rows.axis) : 1);
    return { each, mean: each };
  }
  if (rows === undefined) return { each: 0, mean: 0 };
  const { tokens, topK, max } = rows;
  const share = movesTokens(step) ? rows.destinations / topK : 1;
  const ofChoices = (choices: number) =>
    step.rowBytes * choices / groupSize / rounds * share *
    shareOfExperts(step);
  return {
    each: ofChoices(Math.max(tokens * topK, max)),
    mean: ofChoices(tokens * topK),
  };
}

/** Other ranks of a group by their link, and the bytes to them. */
export function levelsOf(
  placements: readonly RankPlacement[],
  { rank, group, each, mean }: {
    readonly rank: number;
    readonly group: readonly number[];
    readonly each: number;
    readonly mean: number;
  },
): { readonly [L in LinkClass]?: LevelTraffic } {
  const placement = placements[rank]!;
  const peers = new Map<LinkClass, number>();
  for (const other of group) {
    if (other === rank) continue;
    const link = linkClass(placement, placements[other]!);
    peers.set(link, (peers.get(link) ?? 0) + 1);
  }
  const beside =
    placements.filter(({ host }) => host === placement.host).length;
  return Object.fromEntries(
    [...peers].map(([link, count]) => {
      // Local rows are moved within the host, too.
      const self = link === "sameHost" ? 1 : 0;
      return [link, {
        peers: count,
        bytes: count * each,
        pairBytes: each,
        hostBytes: beside * (count + self) * mean,
      }];
    }),
  );
}
