/**
 * A model of the time of a launch on a described GPU: the longest of waiting for memory, bandwidth, the port of a
 * core to L2, the banks of its workgroup memory, matrix units, and issuing instructions. Registers, and chains of loads
 * within an iteration, are not modelled.
 */

import { type Counts, SECTOR, WARP } from "./count.ts";
import type { Gpu } from "./gpus.ts";

/** What limits a launch. */
export type Limit =
  | "waiting"
  | "bandwidth"
  | "port"
  | "banks"
  | "matrix"
  | "issue";

/** The bound of a launch. */
export interface Bound {
  readonly seconds: number;
  readonly by: Limit;
  /** Share of the bytes of fetched sectors of device memory that a workgroup asks for. */
  readonly efficiency: number;
  /** Bytes from device memory in flight at once. */
  readonly inFlight: number;
}

/** A launch of equal workgroups. */
export interface Launch {
  readonly workgroups: number;
  /** Lanes of a workgroup. */
  readonly lanes: number;
  /** Words of workgroup memory of a workgroup. */
  readonly words: number;
  readonly cold: (binding: string) => boolean;
  /** Distinct bytes that all workgroups load from device memory. Default: those of a workgroup, times workgroups. */
  readonly distinct?: number;
}

/** GPU facts that bounds use. */
export type GpuCores = Omit<
  Gpu,
  "machine" | "name" | "multiplyAdds" | "launch" | "subgroup" | "cache"
>;

/** Iterations until latency and use of the bandwidth agree. */
const ROUNDS = 30;

/** Bounds the time of a launch, without launch overhead. */
export function boundOf(gpu: GpuCores, counts: Counts, launch: Launch): Bound {
  const { workgroups, lanes, words } = launch;
  const warps = Math.ceil(lanes / WARP);
  const perCore = Math.max(
    1,
    Math.min(
      gpu.groups,
      Math.floor(gpu.warps / warps),
      words > 0 ? Math.floor(gpu.words / words) : Infinity,
    ),
  );
  const atOnce = Math.min(workgroups, perCore * gpu.cores);
  // Workgroups start when others end, so the last wave need not be full.
  const waves = Math.max(1, workgroups / (perCore * gpu.cores));
  const usedCores = Math.min(gpu.cores, workgroups);
  const { asked, fetched, loaded } = loadedBytes(counts, launch);
  const efficiency = fetched > 0 ? asked / fetched : 1;
  const all = Math.min(
    fetched * workgroups,
    launch.distinct === undefined ? Infinity : launch.distinct / efficiency,
  );
  const { apart } = gpu;
  const issued = counts.instructions - (gpu.beside ? counts.accesses : 0);
  const issue = issued / gpu.clock;
  const conflicts = (counts.shared.passes - counts.shared.conflictFree) /
    gpu.clock;
  const perIssue = Math.max(1, atOnce * warps / (usedCores * gpu.issue));
  const multiply = (of: { readonly multiplyAdds: number }) =>
    of.multiplyAdds * gpu.cores / (gpu.matrix.rate * gpu.matrix.reachable);
  const { ahead } = counts;
  /** The part of waits for earlier loads that overlaps with instructions and products. */
  const overlap = apart * ahead.instructions / gpu.clock + multiply(ahead);
  const throughput: { readonly [L in Exclude<Limit, "waiting">]: number } = {
    bandwidth: (all + counts.stored * workgroups) /
      (gpu.bandwidth * gpu.reachable),
    port: loaded * workgroups / (usedCores * gpu.port * gpu.clock),
    banks: banksSeconds(gpu, counts) * workgroups / usedCores,
    matrix: multiply(counts.matrices) * workgroups / usedCores,
    issue: issue * Math.max(apart, perIssue) * waves,
  };
  const device = counts.waits.device + ahead.waits.device;
  let latency = gpu.idle;
  let [seconds, waiting] = [0, 0];
  // Latency grows linearly with the use of the bandwidth.
  for (let round = 0; round < ROUNDS; round++) {
    const waits = (of: Counts["waits"]) =>
      of.device * latency + of.l2 * gpu.l2 + of.near * gpu.near +
      of.shared * gpu.shared;
    waiting = waves *
      (waits(counts.waits) +
        Math.max(waits(ahead.late), waits(ahead.waits) - overlap) +
        2 * counts.barriers * gpu.shared + apart * counts.slowest / gpu.clock +
        conflicts / warps +
        multiply(counts.matrices));
    seconds = Math.max(waiting, ...Object.values(throughput));
    const use = Math.min(1, all / (seconds * gpu.bandwidth));
    latency = (latency + gpu.idle + (gpu.loaded - gpu.idle) * use) / 2;
  }
  const limits = Object.entries({ waiting, ...throughput }) as [
    Limit,
    number,
  ][];
  return {
    seconds,
    by:
      limits.reduce((tightest, limit) =>
        limit[1] > tightest[1] ? limit : tightest
      )[0],
    efficiency,
    inFlight: device > 0 ? atOnce * fetched / device : 0,
  };
}

/** Seconds in which workgroup memory passes the words of a workgroup: every bank passes a word per cycle. */
function banksSeconds(
  { clock }: GpuCores,
  { shared, matrices }: Counts,
): number {
  return (shared.passes + matrices.passes) / clock;
}

/** Bytes that a workgroup loads: asked for and fetched from device memory, and all sectors. */
function loadedBytes(
  { touched }: Counts,
  { cold }: Launch,
): { asked: number; fetched: number; loaded: number } {
  let [asked, fetched, loaded] = [0, 0, 0];
  for (const [binding, { sectors, bytes }] of touched) {
    loaded += sectors * SECTOR;
    if (!cold(binding)) continue;
    asked += bytes;
    fetched += sectors * SECTOR;
  }
  return { asked, fetched, loaded };
}
