/** Memory and traffic of a session: predicted and actual. */

import {
  predictPeakBytes,
  predictSentBytes,
  rowsBetween,
} from "../spec/plan/bytes.ts";
import { executes } from "../spec/plan/members.ts";
import { type CollectiveStep, onRank, type Plan } from "../spec/plan/plan.ts";
import type { Sent, SentAccount, SentBytes } from "./exchange/communicator.ts";
import { sentKind } from "./exchange/exchange.ts";
import { wordsOf } from "./host_tensor.ts";
import type { Streaming } from "./device.ts";
import type { RankMemory } from "./memory.ts";
import type { RunCounts } from "./run_counts.ts";

/** A predicted and an actual value. */
export interface Compared {
  readonly predicted: number;
  readonly actual: number;
}

/** One rank's memory and traffic. */
export interface RankStatistics {
  readonly rank: number;
  /** Device memory. */
  readonly peakBytes: Compared;
  /** Host memory for exchanges between ranks on several devices. */
  readonly stagingBytes: Compared;
  /** Bytes sent to other ranks since the start of the session. */
  readonly sentBytes: { readonly [K in keyof SentBytes]: Compared };
}

/** A session's memory and traffic. */
export interface Statistics {
  readonly ranks: readonly RankStatistics[];
  /** Streaming statistics of the device of the first rank in this process. */
  readonly streaming?: Streaming;
}

function nothing(): SentBytes {
  return {
    counts: 0,
    dispatch: 0,
    combine: 0,
    gather: 0,
    reduce: 0,
    stages: 0,
    attention: 0,
  };
}

/** Traffic of the ranks in this process. Communicators add the bytes that they moved, without access to predictions. */
export class TrafficAccount implements SentAccount {
  readonly #actual: readonly SentBytes[];
  readonly #predicted: readonly SentBytes[];
  readonly #plan: Plan;
  readonly #ranks: readonly RankMemory[];

  constructor(plan: Plan, ranks: readonly RankMemory[]) {
    this.#plan = plan;
    this.#ranks = ranks;
    this.#actual = Array.from({ length: plan.ranks }, nothing);
    this.#predicted = Array.from({ length: plan.ranks }, nothing);
  }

  add(step: CollectiveStep, { from, bytes }: Sent): void {
    this.#actual[from]![sentKind(step, this.#plan)] += bytes;
  }

  /** Adds the predicted bytes of a collective, from the routing's counts and the run's lengths. */
  async predict(step: CollectiveStep, lengths: RunCounts): Promise<void> {
    const key = sentKind(step, this.#plan);
    await Promise.all(this.#ranks.map(async (memory) => {
      const { rank } = memory;
      if (!executes(this.#plan.mesh, rank, step)) return;
      const rows = step.op === "allToAll"
        ? rowsBetween(await this.#counts(step.counts, memory), step)
        : [];
      this.#predicted[rank]![key] += predictSentBytes(step, rows, {
        mesh: this.#plan.mesh,
        rank,
        length: (axis, of) => lengths[of]![this.#plan.counts.indexOf(axis)]!,
      });
    }));
  }

  /** One rank's traffic. */
  of(rank: number): RankStatistics["sentBytes"] {
    return compared(this.#predicted[rank]!, this.#actual[rank]!);
  }

  async #counts(name: string, memory: RankMemory): Promise<number[][]> {
    const { rank } = memory;
    const bytes = onRank(memory.plan(name).bytes, rank);
    const words = wordsOf(
      await memory.device.read(memory.buffer(name), 0, bytes),
    );
    const columns = onRank(memory.plan(name).axes.at(-1)!.size, rank);
    const rows: number[][] = [];
    for (let at = 0; at + columns <= words.length; at += columns) {
      rows.push([...words.subarray(at, at + columns)]);
    }
    return rows;
  }
}

function compared(
  predicted: SentBytes,
  actual: SentBytes,
): RankStatistics["sentBytes"] {
  return Object.fromEntries(
    Object.entries(predicted).map(([kind, bytes]) => [
      kind,
      { predicted: bytes, actual: actual[kind as keyof SentBytes] },
    ]),
  ) as RankStatistics["sentBytes"];
}

/** One rank's figures. Traffic is zero if it was not counted. */
export function rankStatistics(
  plan: Plan,
  memory: RankMemory,
  stagingBytes: number,
  traffic: TrafficAccount | undefined,
): RankStatistics {
  const { rank, allocatedBytes } = memory;
  return {
    rank,
    peakBytes: {
      predicted: predictPeakBytes(plan, rank),
      actual: allocatedBytes,
    },
    stagingBytes: {
      predicted: stagingBytes > 0 ? onRank(plan.staging.host, rank) : 0,
      actual: stagingBytes,
    },
    sentBytes: traffic?.of(rank) ?? compared(nothing(), nothing()),
  };
}
