/** Exchanges between devices of one process: copies from memory lent by one device to memory lent by another. */

import type {
  AllGatherStep,
  AllToAllStep,
  CollectiveStep,
  SendStep,
} from "../../spec/plan/plan.ts";
import type { CommunicatorContext, Exchange } from "./communicator.ts";
import type { Span } from "../device.ts";
import {
  bringsCounts,
  gatheredSpans,
  receivedSpans,
  reserveStaging,
  spansOf,
} from "./exchange.ts";
import type { RankMemory } from "../memory.ts";
import { gatheredRows, type RunCounts } from "../run_counts.ts";

/** One collective among ranks of this process. */
interface Bound {
  readonly group: readonly RankMemory[];
  readonly context: CommunicatorContext;
  /** Whether it gathers the counts of exchanges. */
  readonly counts: boolean;
}

/** Binds collectives of ranks on several devices. */
export function createHostBinder(): (
  step: CollectiveStep,
  group: readonly RankMemory[],
  context: CommunicatorContext,
) => Exchange {
  return (step, group, context) => {
    for (const memory of group) reserveStaging(step, memory, context);
    const counts = bringsCounts(step, context.plan);
    const bound = { group, context, counts };
    return step.op === "send"
      ? (counts) => send(step, bound, counts)
      : step.op === "allGather"
      ? (counts) => allGather(step, bound, counts)
      : () => allToAll(step, bound);
  };
}

async function send(
  step: SendStep,
  { group: [source, destination], context }: Bound,
  counts: RunCounts,
): Promise<void> {
  const { staging, sent, plan } = context;
  const { rank } = source!;
  const bytes = gatheredRows(step, plan, counts[rank]!) * step.bytes;
  const [reading, writing] = [
    staging.take(source!, "read"),
    staging.take(destination!, "write"),
  ];
  try {
    const [from, to] = await allOpen([
      reading.open(source!.buffer(step.from), [{ offset: 0, bytes }]),
      writing.open(destination!.buffer(step.to), [{ offset: 0, bytes }]),
    ]);
    to![0]!.set(from![0]!);
    sent?.add(step, { from: rank, to: destination!.rank, bytes });
  } finally {
    staging.give(source!, "read", reading);
    staging.give(destination!, "write", writing);
  }
}

async function allGather(
  step: AllGatherStep,
  bound: Bound,
  counts: RunCounts,
): Promise<void> {
  const { group, context } = bound;
  const ranks = group.map(({ rank }) => rank);
  const spans = gatheredSpans(step, context.plan, { ranks, counts });
  await transfer(step, bound, {
    out: (s) => step.blocks ? spans : [{ offset: 0, bytes: spans[s]!.bytes }],
    into: (p) => receivedSpans(step, spans, p),
    arrived: (memory, blocks) => {
      if (bound.counts) context.known.keep(memory, step.to, blocks);
    },
  });
}

async function allToAll(step: AllToAllStep, bound: Bound): Promise<void> {
  const { group, context } = bound;
  const found = context.known.of(step, group[0]!, group.length);
  const counts = found instanceof Promise ? await found : found;
  const spans = group.map((_, p) => spansOf(step, counts, p));
  await transfer(step, bound, {
    out: (s) => spans[s]!.send,
    into: (p) => spans[p]!.receive,
  });
}

/** The source spans of each rank, one per group rank or one for all, and the destination span of each group rank. */
interface Routes {
  out(groupRank: number): readonly Span[];
  into(groupRank: number): readonly Span[];
  arrived?(memory: RankMemory, blocks: readonly Uint8Array[]): void;
}

/** Copies between lent memory, each byte once. */
async function transfer(
  step: AllGatherStep | AllToAllStep,
  { group, context }: Bound,
  { out, into, arrived }: Routes,
): Promise<void> {
  const { staging, sent } = context;
  const reads = group.map((memory) => staging.take(memory, "read"));
  const writes = group.map((memory) => staging.take(memory, "write"));
  try {
    const lent = await allOpen([
      ...group.map((memory, s) =>
        reads[s]!.open(memory.buffer(step.from), out(s))
      ),
      ...group.map((memory, p) =>
        writes[p]!.open(memory.buffer(step.to), into(p))
      ),
    ]);
    const from = lent.slice(0, group.length);
    const to = lent.slice(group.length);
    for (const [p, memory] of group.entries()) {
      for (const [s, { rank }] of group.entries()) {
        const block = from[s]![p] ?? from[s]![0]!;
        to[p]![s]!.set(block);
        const { byteLength: bytes } = block;
        if (s !== p) sent?.add(step, { from: rank, to: memory.rank, bytes });
      }
      arrived?.(memory, to[p]!);
    }
  } finally {
    for (const [p, memory] of group.entries()) {
      staging.give(memory, "read", reads[p]!);
      staging.give(memory, "write", writes[p]!);
    }
  }
}

/** Waits for all. If one fails, it waits for the others to open, so that all can be closed. */
async function allOpen<T>(opening: readonly Promise<T>[]): Promise<T[]> {
  await Promise.allSettled(opening);
  return await Promise.all(opening);
}
