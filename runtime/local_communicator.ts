/** Exchanges between ranks that share one device: launches of the plan's own kernels, without a host wait. */

import type {
  CollectiveStep,
  CommunicatorContext,
  Exchange,
} from "./communicator.ts";
import type { DeviceBuffer } from "./device.ts";
import { sentKind } from "./exchange.ts";
import { wordsOf } from "./host_tensor.ts";
import { kernelKey } from "./kernel_key.ts";
import type { RankMemory } from "./memory.ts";
import { bindWorkgroups, type RunCounts } from "./run_counts.ts";

/** Bind the `local` launches of a collective for every rank of the group. */
export function bindLocal(
  step: CollectiveStep,
  group: readonly RankMemory[],
  context: CommunicatorContext,
): Exchange {
  const launches = group.flatMap((to) =>
    step.local.map((local) => {
      const bindings = context.plan.kernels[local.kernel]!.tree.bindings;
      const buffers: readonly DeviceBuffer[] = Object.freeze(
        bindings.map(({ name }) =>
          bufferOf(name, step, local.sources, to, group)
        ),
      );
      const workgroups = bindWorkgroups(
        local.workgroups,
        context.plan,
        to.rank,
      );
      const key = kernelKey(context.plan, local.kernel);
      return (counts: RunCounts) =>
        to.device.launch(key, buffers, workgroups(counts), step.label);
    })
  );
  const launchAll = (counts: RunCounts) => {
    for (const launch of launches) launch(counts);
  };
  const { sent } = context;
  if (!sent) return launchAll;
  return async (counts) => {
    launchAll(counts);
    await countSent(step, group, sent);
  };
}

function bufferOf(
  binding: string,
  step: CollectiveStep,
  sources: readonly number[],
  to: RankMemory,
  group: readonly RankMemory[],
): DeviceBuffer {
  if (binding === "dst") return to.buffer(step.to);
  const source = /^src(\d+)$/.exec(binding);
  if (source) return group[sources[Number(source[1])]!]!.buffer(step.from);
  if (step.op === "allGather" && step.rows && binding === "counts") {
    return to.buffer(step.rows.counts);
  }
  if (step.op === "allGather" && step.blocks && binding === "position") {
    return to.buffer(step.blocks.position);
  }
  if (step.op === "allToAll") {
    if (binding === "counts") return to.buffer(step.counts);
    if (binding === "position") return to.buffer(step.position);
    if (binding === "moved") return to.buffer(step.moved);
  }
  throw new Error(`internal: exchange kernel has a binding '${binding}'`);
}

/** Add what left each rank, as the exchange kernel itself reports it. */
async function countSent(
  step: CollectiveStep,
  group: readonly RankMemory[],
  sent: NonNullable<CommunicatorContext["sent"]>,
): Promise<void> {
  if (step.op === "allGather") {
    // Every launch of the copy kernel moves the whole of each source, its block, or the rows that it is told of.
    const [first] = group;
    const rows = step.rows && wordsOf(
      await first!.device.read(
        first!.buffer(step.rows.counts),
        0,
        4 * group.length,
      ),
    );
    for (const [s, { rank }] of group.entries()) {
      const bytes = (rows?.[s] ?? 1) * step.bytes * (group.length - 1);
      sent[rank]![sentKind(step)] += bytes;
    }
    return;
  }
  const verb = step.part?.verb ?? "dispatch";
  const moved = await Promise.all(
    group.map((to) =>
      to.device.read(to.buffer(step.moved), 0, 4 * group.length)
    ),
  );
  for (const [p, bytes] of moved.entries()) {
    for (const [s, rows] of wordsOf(bytes).entries()) {
      if (s !== p) sent[group[s]!.rank]![verb] += rows * step.rowBytes;
    }
  }
}
