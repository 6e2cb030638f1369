/** Memory of the ranks of a session. */

import { onRank, type Plan } from "../spec/plan/plan.ts";
import type { Device, DeviceBuffer } from "./device.ts";
import { ExpertSlots } from "./weights/expert_slots.ts";
import { hostExperts, mapWeights } from "./weights/mapped.ts";
import { RankMemory } from "./memory.ts";
import type { TensorDirectory } from "./weights/safetensors.ts";
import { equalWeights } from "./weights/shared.ts";

/** A session's plan and the memory of its ranks. */
export interface Loaded {
  readonly plan: Plan;
  readonly ranks: readonly RankMemory[];
}

/**
 * Allocates the buffers of ranks, or maps them from the files of `tensors`. Weights that `source` lays out equally on
 * the same devices are shared with it: their names are `shared`.
 */
export function allocateRanks(
  plan: Plan,
  { devices, tensors, source, slotBytes, rankOf }: {
    readonly devices: readonly Device[];
    readonly tensors: TensorDirectory;
    readonly source: Loaded | undefined;
    /** Bytes of expert slots on each device. Undefined: devices have all experts. */
    readonly slotBytes: number | undefined;
    /** The rank of a device, by its index. */
    readonly rankOf: (index: number) => number;
  },
): {
  readonly shared: ReadonlySet<string>;
  readonly ranks: readonly RankMemory[];
} {
  const shared =
    source && devices.every((device, i) => device === source.ranks[i]?.device)
      ? equalWeights(plan, source.plan)
      : new Set<string>();
  const slots = new Map<Device, ExpertSlots | undefined>(
    source?.ranks.map(({ device, slots }) => [device, slots]),
  );
  const ranks = devices.map((device, i) => {
    const rank = rankOf(i);
    if (!slots.has(device) && slotBytes !== undefined) {
      slots.set(device, new ExpertSlots(device, slotBytes));
    }
    const buffers = new Map<string, DeviceBuffer>(
      slots.get(device) ? hostExperts(plan, rank) : [],
    );
    const from = source?.ranks[i];
    for (const name of shared) {
      if (from?.has(name)) buffers.set(name, from.buffer(name));
    }
    const others = plan.weights.filter(({ buffer }) =>
      !buffers.has(buffer) && onRank(plan.buffers[buffer]!.bytes, rank) > 0
    );
    return new RankMemory(plan, device, rank, {
      shared: buffers,
      mapped: mapWeights(plan, others, { device, rank }, tensors),
      slots: slots.get(device),
    });
  });
  return { shared, ranks };
}
