/** How long an exchange between devices takes, from the bytes between its ranks and the links of the machine file. */

import { moveSeconds } from "../simulate/exchange_time.ts";
import {
  linkClass,
  type Machine,
  type MachineLink,
  type RankPlacement,
} from "../../spec/machine.ts";
import { DataError } from "../../spec/errors.ts";
import { sum } from "../../spec/sum.ts";

/** An exchange among the ranks of one group. */
export interface LinkTraffic {
  /** Where the rank of each position lives. */
  readonly places: readonly RankPlacement[];
  /** Bytes from each position to each. */
  readonly bytes: readonly (readonly number[])[];
  /** Every rank tells all others the same few numbers. */
  readonly gathers: boolean;
}

/** Predict the seconds of an exchange: those of the slowest rank. Kinds of links work at the same time. */
export function exchangeSeconds(
  machine: Machine,
  { places, bytes, gathers }: LinkTraffic,
): number {
  let slowest = 0;
  for (const [r, place] of places.entries()) {
    const peers = new Map<MachineLink, number[]>();
    for (const [s, other] of places.entries()) {
      if (s === r) continue;
      const link = linkBetween(machine, place, other);
      peers.set(link, [...peers.get(link) ?? [], s]);
    }
    let transfer = 0;
    for (const [link, others] of peers) {
      const further = others.length - 1;
      if (gathers && link.gather) {
        const { latency, peer } = link.gather;
        transfer = Math.max(transfer, latency + peer * further);
        continue;
      }
      const moved = busiest(machine, link, { r, others, places, bytes });
      const { latency, peer = 0 } = link;
      transfer = Math.max(
        transfer,
        latency + peer * further + moveSeconds(link, moved),
      );
    }
    const { staging } = machine.devices[place.kind]!;
    const staged = staging === undefined
      ? 0
      : 2 * staging.latency + (sum(bytes[r]!) + sum(bytes.map((b) => b[r]!))) /
          staging.bandwidth;
    slowest = Math.max(slowest, transfer + staged);
  }
  return slowest;
}

function linkBetween(
  machine: Machine,
  a: RankPlacement,
  b: RankPlacement,
): MachineLink {
  const wanted = linkClass(a, b);
  const link = machine.links[wanted];
  if (link) return link;
  throw new DataError(
    `Cannot predict an exchange between hosts '${a.hostName}' and '${b.hostName}': the machine '${machine.name}' has no link '${wanted}'. Describe it in the machine file`,
  );
}

/** Bytes that go through whatever the bandwidth of a link is of, in the busier direction. */
function busiest(
  machine: Machine,
  link: MachineLink,
  { r, others, places, bytes }: Omit<LinkTraffic, "gathers"> & {
    readonly r: number;
    readonly others: readonly number[];
  },
): number {
  const out = others.map((s) => bytes[r]![s]!);
  const into = others.map((s) => bytes[s]![r]!);
  if (link.per === "pair") return Math.max(0, ...out, ...into);
  if (link.per === "rank") return Math.max(sum(out), sum(into));
  const { host } = places[r]!;
  let [leaves, enters] = [0, 0];
  for (const [a, from] of places.entries()) {
    for (const [b, to] of places.entries()) {
      // What a rank keeps is moved within its host, too.
      const moves = a === b
        ? link !== machine.links.otherHost
        : linkBetween(machine, from, to) === link;
      if (!moves) continue;
      if (from.host === host) leaves += bytes[a]![b]!;
      if (to.host === host) enters += bytes[a]![b]!;
    }
  }
  return Math.max(leaves, enters);
}
