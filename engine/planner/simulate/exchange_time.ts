/** Predicts the time of an exchange from the messages and bytes of a rank per link level. */

import {
  LINK_CLASSES,
  type LinkClass,
  type Machine,
  type MachineLink,
} from "../../../spec/machine.ts";
import { DataError } from "../../../spec/errors.ts";

/** Traffic of the busiest rank at one level, in the busier direction. */
export interface LevelTraffic {
  /** Number of ranks that it exchanges with. */
  readonly peers: number;
  /** Bytes to all of them. */
  readonly bytes: number;
  /** Messages to all of them. Default: one each. */
  readonly messages?: number;
  /** Bytes to the largest destination. Default: an even share. */
  readonly pairBytes?: number;
  /** Bytes of all ranks that share a host's bandwidth, including local ones. Default: `bytes`. */
  readonly hostBytes?: number;
}

/** Traffic of the busiest rank in an exchange. */
export interface Traffic {
  readonly levels: { readonly [L in LinkClass]?: LevelTraffic };
  /** Whether every rank sends all others the same few numbers. */
  readonly gathers?: boolean;
  /** Bytes sent and received, for copies between the device and its host. */
  readonly staged?: number;
}

/** Predicts the seconds of an exchange. Levels work concurrently. Throws DataError for a link that is not described. */
export function exchangeSeconds(
  machine: Machine,
  { levels, gathers = false, staged = 0 }: Traffic,
  kind: string,
): number {
  let transfer = 0;
  for (const level of LINK_CLASSES) {
    const traffic = levels[level];
    if (!traffic || traffic.peers <= 0) continue;
    const link = linkOf(machine, level);
    const { peers, messages = peers } = traffic;
    const further = Math.max(0, peers - 1);
    const seconds = gathers && link.gather
      ? link.gather.latency + link.gather.peer * further
      : link.latency + (link.peer ?? 0) * further +
        (link.message ?? 0) * messages +
        moveSeconds(link, movedBytes(link, traffic));
    transfer = Math.max(transfer, seconds);
  }
  const { staging } = machine.devices[kind]!;
  return staging === undefined
    ? transfer
    : transfer + 2 * staging.latency + staged / staging.bandwidth;
}

/** Lower bound of the seconds of an exchange: its bytes over the bandwidth of links, without latency and staging. */
export function minExchangeSeconds(
  machine: Machine,
  { levels }: Pick<Traffic, "levels">,
): number {
  return Math.max(
    0,
    ...LINK_CLASSES.flatMap((level) => {
      const traffic = levels[level];
      if (!traffic || traffic.peers <= 0) return [];
      const link = linkOf(machine, level);
      return [movedBytes(link, traffic) / reachedBandwidth(link)];
    }),
  );
}

function movedBytes({ per }: MachineLink, traffic: LevelTraffic): number {
  const { peers, bytes, pairBytes = bytes / peers, hostBytes = bytes } =
    traffic;
  return per === "pair" ? pairBytes : per === "rank" ? bytes : hostBytes;
}

/** Seconds of a message of this many bytes on a link, without latency. */
function moveSeconds(link: MachineLink, bytes: number): number {
  const { oversubscription = 1, short = [] } = link;
  let before = { bytes: 0, seconds: 0 };
  for (const size of short) {
    if (bytes < size.bytes) {
      const part = (bytes - before.bytes) / (size.bytes - before.bytes);
      return before.seconds + part * (size.seconds - before.seconds);
    }
    before = size;
  }
  return before.seconds +
    (bytes - before.bytes) * oversubscription / reachedBandwidth(link);
}

/** Bytes per second that a long exchange reaches on a link. */
function reachedBandwidth({ bandwidth, efficiency = 1 }: MachineLink): number {
  return bandwidth * efficiency;
}

function linkOf(machine: Machine, level: LinkClass): MachineLink {
  const link = machine.links[level];
  if (link) return link;
  throw new DataError(
    `Cannot predict an exchange: the machine '${machine.name}' has no link '${level}'. Describe it in the machine file`,
  );
}
