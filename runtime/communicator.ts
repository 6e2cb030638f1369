/** What moves bytes between ranks: the interface, and the choice of one. */

import type { AllGatherStep, AllToAllStep, Plan } from "../spec/plan.ts";
import { bindHost } from "./host_communicator.ts";
import { bindLocal } from "./local_communicator.ts";
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
}

/** Where an exchange adds what it moved: one entry for each rank. */
export type SentAccount = readonly SentBytes[];

/** Moves bytes between ranks. */
export interface Communicator {
  /** Set where every rank lives in a process of its own; unset where all live in this one. */
  readonly remote?: RemoteRanks;
  /**
   * Make ready to carry out `step` among `group` (by position), again and again; called once at load. `group` holds the
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
  /** Staging that the communicator allocated, in bytes by rank; it adds here. */
  readonly staging: StagingAccount;
  /** Bytes moved to other ranks; undefined: nobody asks. */
  readonly sent: SentAccount | undefined;
}

/** Staging buffers in host memory, one for each rank, as long as the longest that was asked for. */
export class StagingAccount {
  readonly #buffers: Uint8Array[];

  constructor(ranks: number) {
    this.#buffers = Array.from({ length: ranks }, () => new Uint8Array(0));
  }

  /** Make sure of `bytes` bytes for `rank`; only at load. */
  reserve(rank: number, bytes: number): void {
    if (this.#buffers[rank]!.length < bytes) {
      this.#buffers[rank] = new Uint8Array(bytes);
    }
  }

  /** The staging of a rank. */
  of(rank: number): Uint8Array {
    return this.#buffers[rank]!;
  }

  /** Bytes allocated for a rank. */
  bytes(rank: number): number {
    return this.#buffers[rank]!.byteLength;
  }
}

/** Groups whose ranks share one device exchange by kernels of the plan, others through host memory. */
export function createCommunicator(): Communicator {
  return {
    bind(step, group, context) {
      const shared = group.every((m) => m.device === group[0]!.device);
      return shared
        ? bindLocal(step, group, context)
        : bindHost(step, group, context);
    },
  };
}
