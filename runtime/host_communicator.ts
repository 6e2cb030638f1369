/** Exchanges between devices of one process, staged through host memory. */

import { onRank } from "../spec/plan.ts";
import type { AllGatherStep, AllToAllStep } from "../spec/plan.ts";
import type {
  CollectiveStep,
  CommunicatorContext,
  Exchange,
} from "./communicator.ts";
import { wordsOf } from "./host_tensor.ts";
import type { RankMemory } from "./memory.ts";

/** Bind a collective; its staging is allocated here, once. */
export function bindHost(
  step: CollectiveStep,
  group: readonly RankMemory[],
  context: CommunicatorContext,
): Exchange {
  for (const { rank } of group) {
    const bytes = (name: string) =>
      onRank(context.plan.buffers[name]!.bytes, rank);
    context.staging.reserve(
      rank,
      step.op === "allGather"
        ? step.bytes
        : Math.max(bytes(step.from), bytes(step.counts)),
    );
  }
  return step.op === "allGather"
    ? () => allGather(step, group, context)
    : () => allToAll(step, group, context);
}

/** Read the first bytes of a buffer into the staging of its rank. */
async function stage(
  memory: RankMemory,
  name: string,
  bytes: number,
  context: CommunicatorContext,
): Promise<Uint8Array> {
  const staging = context.staging.of(memory.rank).subarray(0, bytes);
  if (bytes > 0) {
    staging.set(await memory.device.read(memory.buffer(name), 0, bytes));
  }
  return staging;
}

async function allGather(
  step: AllGatherStep,
  group: readonly RankMemory[],
  context: CommunicatorContext,
): Promise<void> {
  const parts = await Promise.all(
    group.map((from) => stage(from, step.from, step.bytes, context)),
  );
  for (const to of group) {
    for (const [s, part] of parts.entries()) {
      to.device.write(to.buffer(step.to), s * step.bytes, part);
      const from = group[s]!;
      if (context.sent && from !== to) {
        context.sent[from.rank]!.counts += part.byteLength;
      }
    }
  }
}

async function allToAll(
  step: AllToAllStep,
  group: readonly RankMemory[],
  context: CommunicatorContext,
): Promise<void> {
  const rows = await rowsBetween(step, group, context);
  const count = (from: number, to: number) =>
    step.direction === "forward" ? rows[from]![to]! : rows[to]![from]!;
  const positions = group.map((_, p) => p);
  const blocks = await Promise.all(group.map((from, s) => {
    const total = positions.reduce((n, p) => n + count(s, p), 0);
    return stage(from, step.from, total * step.rowBytes, context);
  }));
  const read = positions.map(() => 0);
  for (const [p, to] of group.entries()) {
    let written = 0;
    for (const s of positions) {
      const bytes = count(s, p) * step.rowBytes;
      const block = blocks[s]!.subarray(read[s]!, read[s]! + bytes);
      to.device.write(to.buffer(step.to), written, block);
      read[s]! += bytes;
      written += bytes;
      if (context.sent && s !== p) {
        const verb = step.part?.verb ?? "dispatch";
        context.sent[group[s]!.rank]![verb] += block.byteLength;
      }
    }
  }
}

/** n(s, p), from the counts that the first rank of the group holds for all of it. */
async function rowsBetween(
  step: AllToAllStep,
  group: readonly RankMemory[],
  context: CommunicatorContext,
): Promise<number[][]> {
  const columns = step.splits.at(-1)!;
  const bytes = 4 * columns * group.length;
  const counts = wordsOf(await stage(group[0]!, step.counts, bytes, context));
  return group.map((_, s) =>
    group.map((_, p) => {
      let rows = 0;
      for (let c = step.splits[p]!; c < step.splits[p + 1]!; c++) {
        rows += counts[s * columns + c]!;
      }
      return rows;
    })
  );
}
