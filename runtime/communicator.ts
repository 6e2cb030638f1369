/** What moves bytes between ranks: the interface, and the choice of one. */

import type {
  AllGatherStep,
  AllToAllStep,
  Plan,
  PlanKernel,
} from "../spec/plan/plan.ts";
import { invariant } from "../spec/errors.ts";
import type { Device, Staging, StagingUse } from "./device.ts";
import { createHostBinder } from "./host_communicator.ts";
import { LocalBinder } from "./local_communicator.ts";
import type { RankMemory } from "./memory.ts";
import type { RunCounts } from "./run_counts.ts";

/** A step of a plan that moves bytes between ranks. */
export type CollectiveStep = AllGatherStep | AllToAllStep;

/** Carries one collective out among the ranks of one group; a promise only where the host must wait. */
export type Exchange = (counts: RunCounts) => void | Promise<void>;

/** Bytes that a rank sent to other ranks. */
export interface SentBytes {
  counts: number;
  dispatch: number;
  combine: number;
  /** Rows of placed axes that every rank needs whole. */
  gather: number;
  /** Parts of sums. */
  reduce: number;
}

/** Where an exchange adds what it moved. */
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
  /** Set where every rank lives in a process of its own; unset where all live in this one. */
  readonly remote?: RemoteRanks;
  /** Kernels that it launches besides those of the plan, by key; `devices` has that of each rank. */
  kernels?(
    plan: Plan,
    devices: readonly Device[],
  ): { readonly [key: string]: PlanKernel };
  /**
   * Make ready to execute `step` among `group` (by group rank), again and again; called once at load. `group` holds the
   * ranks of this process only.
   */
  bind(
    step: CollectiveStep,
    group: readonly RankMemory[],
    context: CommunicatorContext,
  ): Exchange;
}

/** Ranks in processes of their own, as one of them sees them. */
export interface RemoteRanks {
  /** The rank of this process. */
  readonly rank: number;
  /** Bring bytes of every rank to rank 0, or everywhere; each knows how many the others give. Called by all in one order. */
  gather(
    bytes: Uint8Array,
    lengths: readonly number[],
    options: { readonly everywhere: boolean },
  ): Promise<readonly Uint8Array[] | undefined>;
}

/** What a communicator may use. */
export interface CommunicatorContext {
  readonly plan: Plan;
  /** Where the communicator gets host memory for bytes that enter and leave devices. */
  readonly staging: StagingAccount;
  /** Bytes moved to other ranks; undefined: nobody asks. */
  readonly sent: SentAccount | undefined;
}

/** The staging of the ranks in this process: for each rank and use, as many as there are exchanges in flight at once. */
export class StagingAccount {
  readonly #pools = new Map<string, StagingPool>();

  /** Make sure that one transfer of `bytes` bytes can be staged; only at load, before `allocate`. */
  reserve({ device, rank }: RankMemory, use: StagingUse, bytes: number): void {
    const pool = this.#pools.get(`${rank} ${use}`) ??
      { device, rank, use, longest: 0, all: [], free: [] };
    pool.longest = Math.max(pool.longest, bytes);
    this.#pools.set(`${rank} ${use}`, pool);
  }

  /** Allocate what was reserved, for so many exchanges at once. */
  allocate(atOnce: number): void {
    for (const pool of this.#pools.values()) {
      const { device, use, longest, all, free } = pool;
      for (let i = 0; i < atOnce; i++) {
        all.push(device.createStaging(use, longest));
      }
      free.push(...all);
    }
  }

  /** A staging for one transfer. */
  take({ rank }: RankMemory, use: StagingUse): Staging {
    const staging = this.#pools.get(`${rank} ${use}`)?.free.pop();
    invariant(staging, `rank ${rank} has no staging left to ${use}`);
    return staging;
  }

  /** End a transfer. */
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
