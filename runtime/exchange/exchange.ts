/** Common parts of exchanges between devices, in one process or in several. */

import {
  type Block,
  blocksOf,
  countsPerRank,
  type ExchangeBlocks,
  purposeOf,
} from "../../spec/plan/bytes.ts";
import { onRank } from "../../spec/plan/plan.ts";
import type {
  AllGatherStep,
  AllToAllStep,
  CollectiveStep,
  Plan,
} from "../../spec/plan/plan.ts";
import type { CommunicatorContext, SentBytes } from "./communicator.ts";
import type { Span } from "../device.ts";
import { wordsOf } from "../host_tensor.ts";
import type { RankMemory } from "../memory.ts";
import { gatheredRows, type RunCounts } from "../run_counts.ts";

/** Reserves staging for the reads and writes of a collective on a rank. */
export function reserveStaging(
  step: CollectiveStep,
  memory: RankMemory,
  { plan, staging }: CommunicatorContext,
): void {
  const bytes = (name: string) =>
    onRank(plan.buffers[name]!.bytes, memory.rank);
  staging.reserve(memory, "read", bytes(step.from));
  staging.reserve(memory, "write", bytes(step.to));
}

/** The category under which the bytes of a collective are counted. */
export function sentKind(
  step: CollectiveStep,
  plan: Pick<Plan, "axes">,
): keyof SentBytes {
  if (step.op === "allToAll") return step.part?.op ?? "dispatch";
  if (step.op === "send" || step.rows && !step.blocks) {
    return purposeOf(step, plan);
  }
  return step.part ? "counts" : "reduce";
}

/** Whether a step gathers the counts of an exchange, or of its rounds. */
export function bringsCounts(
  step: CollectiveStep,
  { programs }: Plan,
): boolean {
  return programs.some(({ steps }) =>
    steps.some((other) =>
      (other.op === "allToAll" || other.op === "rounds") &&
      other.counts === step.to
    )
  );
}

/**
 * Gathered counts of a rank, cached so that an exchange need not wait for the device. The source of the exchange is
 * then read at once, before any later launch.
 */
export class KnownCounts {
  readonly #known = new Map<string, Counts>();

  /** Caches gathered counts, by group rank. */
  keep(
    memory: RankMemory,
    buffer: string,
    bytes: readonly Uint8Array[],
  ): void {
    this.set(memory, buffer, bytes.map((part) => [...wordsOf(part)]));
  }

  /** Caches counts. */
  set({ rank }: RankMemory, buffer: string, counts: Counts): void {
    this.#known.set(`${rank} ${buffer}`, counts);
  }

  /**
   * The counts of an exchange among `groupSize` ranks, or of its rounds, by group rank and expert. A promise if they
   * have to be read from the device.
   */
  of(
    step: Pick<AllToAllStep, "counts" | "splits" | "countsPerRank">,
    memory: RankMemory,
    groupSize: number,
  ): Counts | Promise<Counts> {
    const known = this.#known.get(`${memory.rank} ${step.counts}`);
    if (known) return known;
    const experts = countsPerRank(step);
    const bytes = 4 * experts * groupSize;
    return memory.device.read(memory.buffer(step.counts), 0, bytes)
      .then((read) =>
        Array.from({ length: groupSize }, (_, s) => [
          ...wordsOf(read).subarray(s * experts, (s + 1) * experts),
        ])
      );
  }
}

/** Rows by group rank and expert. */
export type Counts = readonly (readonly number[])[];

/** Byte spans of the parts of a gather, by group rank, one after another. */
export function gatheredSpans(
  step: AllGatherStep,
  plan: Plan,
  { ranks, counts }: {
    readonly ranks: readonly number[];
    readonly counts: RunCounts;
  },
): Span[] {
  let offset = 0;
  return ranks.map((rank) => {
    const bytes = gatheredRows(step, plan, counts[rank]!) * step.bytes;
    const span = { offset, bytes };
    offset += bytes;
    return span;
  });
}

/** Byte spans for the received parts of a gather: as stored, or for blocks with the local length. */
export function receivedSpans(
  step: AllGatherStep,
  spans: readonly Span[],
  groupRank: number,
): readonly Span[] {
  if (!step.blocks) return spans;
  const { bytes } = spans[groupRank]!;
  return spans.map((_, s) => ({ offset: s * bytes, bytes }));
}

/** Byte spans of the rows of an exchange on the rank with a group rank, in `from` and in `to`. */
export function spansOf(
  step: AllToAllStep,
  counts: Counts,
  groupRank: number,
): { readonly [Side in keyof ExchangeBlocks]: readonly Span[] } {
  const { send, receive } = blocksOf(counts, step, { groupRank });
  const inBytes = ({ offset, count }: Block): Span => ({
    offset: offset * step.rowBytes,
    bytes: count * step.rowBytes,
  });
  return { send: send.map(inBytes), receive: receive.map(inBytes) };
}
