/** Communicators: the interface, and the choice of one. */

import type { CollectiveStep, Plan, PlanKernel } from "../../spec/plan/plan.ts";
import { invariant } from "../../spec/errors.ts";
import type { Device, Staging, StagingUse } from "../device.ts";
import type { KnownCounts } from "./exchange.ts";
import { createHostBinder } from "./host_communicator.ts";
import { LocalBinder } from "./local_communicator.ts";
import type { RankMemory } from "../memory.ts";
import type { RunCounts } from "../run_counts.ts";

/** Executes one collective among the ranks of one group. Returns a promise only if the host must wait. */
export type Exchange = (counts: RunCounts) => void | Promise<void>;

/** Bytes that a rank sent to other ranks. */
export interface SentBytes {
  counts: number;
  dispatch: number;
  combine: number;
  /** All-gathered rows of placed axes. */
  gather: number;
  /** Partial sums. */
  reduce: number;
  /** Values sent to other stages. */
  stages: number;
  /** Keys and sums of attention sent to ranks with other positions. */
  attention: number;
}

/** Receives the byte counts of an exchange. */
export interface SentAccount {
  add(step: CollectiveStep, sent: Sent): void;
}

/** Bytes that one rank sent another. */
export interface Sent {
  readonly from: number;
  readonly to: number;
  readonly bytes: number;
}

/** Moves bytes between ranks. */
export interface Communicator {
  /** Set if every rank is a separate process. Absent if all are in this process. */
  readonly remote?: RemoteRanks;
  /** Kernels that it launches besides those of the plan, by key. `devices`: the device of each rank. */
  kernels?(
    plan: Plan,
    devices: readonly Device[],
  ): { readonly [key: string]: PlanKernel };
  /**
   * Prepares repeated execution of `step` in `group` (by group rank); called once on load. `group` contains only the
   * ranks of this process.
   */
  bind(
    step: CollectiveStep,
    group: readonly RankMemory[],
    context: CommunicatorContext,
  ): Exchange;
}

/** Ranks in separate processes, from the view of one of them. */
export interface RemoteRanks {
  /** The rank of this process. */
  readonly rank: number;
  /**
   * Gathers bytes of every rank on rank 0, or on all ranks. Each rank knows the sizes of the others. All ranks must
   * call it in the same order. With pipeline stages, a rank does not wait for others whose bytes it does not receive.
   */
  gather(
    bytes: Promise<Uint8Array>,
    lengths: readonly number[],
    options: { readonly everywhere: boolean },
  ): Promise<readonly Uint8Array[] | undefined>;
}

/** Context of a communicator. */
export interface CommunicatorContext {
  readonly plan: Plan;
  /** Host memory for bytes that enter and leave devices. */
  readonly staging: StagingAccount;
  /** Counts of exchanges that the host knows. */
  readonly known: KnownCounts;
  /** Counts bytes sent to other ranks. Undefined: they are not counted. */
  readonly sent: SentAccount | undefined;
}

/** The staging of the ranks in this process: for each rank and use, one per concurrent exchange. */
export class StagingAccount {
  readonly #pools = new Map<string, StagingPool>();

  /** Reserves staging for one transfer of `bytes` bytes; only on load, before `allocate`. */
  reserve({ device, rank }: RankMemory, use: StagingUse, bytes: number): void {
    const pool = this.#pools.get(`${rank} ${use}`) ??
      { device, rank, use, longest: 0, all: [], free: [] };
    pool.longest = Math.max(pool.longest, bytes);
    this.#pools.set(`${rank} ${use}`, pool);
  }

  /** Allocates the reserved memory for this many concurrent exchanges. */
  allocate(atOnce: number): void {
    for (const pool of this.#pools.values()) {
      const { device, use, longest, all, free } = pool;
      for (let i = 0; i < atOnce; i++) {
        all.push(device.createStaging(use, longest));
      }
      free.push(...all);
    }
  }

  /** Acquires a staging for one transfer. */
  take({ rank }: RankMemory, use: StagingUse): Staging {
    const staging = this.#pools.get(`${rank} ${use}`)?.free.pop();
    invariant(staging, `rank ${rank} has no staging left to ${use}`);
    return staging;
  }

  /** Releases the staging of a transfer. */
  give({ rank }: RankMemory, use: StagingUse, staging: Staging): void {
    staging.close();
    this.#pools.get(`${rank} ${use}`)!.free.push(staging);
  }

  /** Bytes allocated for a rank. */
  bytes(rank: number): number {
    return [...this.#pools.values()]
      .filter((pool) => pool.rank === rank)
      .flatMap((pool) => pool.all)
      .reduce((n, { bytes }) => n + bytes, 0);
  }
}

interface StagingPool {
  readonly device: Device;
  readonly rank: number;
  readonly use: StagingUse;
  longest: number;
  readonly all: Staging[];
  readonly free: Staging[];
}

/** Groups whose ranks share one device exchange by kernel launches, others through host memory. */
export function createCommunicator(): Communicator {
  const bindHost = createHostBinder();
  const local = new LocalBinder();
  return {
    kernels: (plan, devices) => local.kernels(plan, devices),
    bind(step, group, context) {
      const shared = group.every((m) => m.device === group[0]!.device);
      return shared
        ? local.bind(step, group, context)
        : bindHost(step, group, context);
    },
  };
}
