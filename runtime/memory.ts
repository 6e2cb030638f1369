/** The memory of one rank: its allocations, and the buffers of the plan as ranges of them. */

import { invariant } from "../spec/errors.ts";
import { onRank, type Plan, type PlanBuffer } from "../spec/plan/plan.ts";
import { sum } from "../spec/sum.ts";
import type { Device, DeviceBuffer } from "./device.ts";
import { type ExpertSlots, HostExperts } from "./weights/expert_slots.ts";

/**
 * Zeros for clearing buffers: states are cleared for every prompt, and allocating zeros each time would be slow to
 * collect.
 */
const ZEROS = new Uint8Array(1 << 20);

/** Buffers of one rank by name. */
export class RankMemory {
  readonly device: Device;
  readonly rank: number;
  /** Slots of the device for experts in host memory. */
  readonly slots: ExpertSlots | undefined;
  readonly #plan: Plan;
  readonly #buffers: Map<string, DeviceBuffer>;
  /** Names of buffers that share memory with files. */
  readonly #mapped: ReadonlySet<string>;
  readonly #bytes: number;

  /**
   * Allocates everything that the plan lists for `rank`, except for allocations of only `shared` buffers, which belong
   * to others, and `mapped` ones, which are memory of files.
   */
  constructor(
    plan: Plan,
    device: Device,
    rank: number,
    { shared = new Map(), mapped = new Map(), slots }: {
      readonly shared?: ReadonlyMap<string, DeviceBuffer>;
      readonly mapped?: ReadonlyMap<string, DeviceBuffer>;
      readonly slots?: ExpertSlots | undefined;
    } = {},
  ) {
    this.slots = slots;
    this.#plan = plan;
    this.device = device;
    this.rank = rank;
    this.#mapped = new Set(mapped.keys());
    let bytes = sum([...mapped.values()].map((buffer) => buffer.bytes));
    const used = new Set(
      Object.entries(plan.buffers).flatMap(([name, { allocation }]) =>
        shared.has(name) || mapped.has(name) ? [] : [allocation]
      ),
    );
    const allocations = plan.allocations.map((allocation, i) => {
      if (!used.has(i)) return undefined;
      const size = onRank(allocation.bytes, rank);
      if (size === 0) return undefined;
      const buffer = device.createBuffer(size, `rank ${rank} allocation ${i}`);
      bytes += buffer.bytes;
      return buffer;
    });
    this.#bytes = bytes;
    this.#buffers = new Map(
      Object.entries(plan.buffers).flatMap(([name, planned]) => {
        const { allocation, offset } = planned;
        const bytes = onRank(planned.bytes, rank);
        if (bytes === 0) return [];
        const buffer = shared.get(name) ?? mapped.get(name) ??
          device.range(allocations[allocation]!, offset, bytes);
        return [[name, buffer] as const];
      }),
    );
  }

  /** Bytes that the device actually allocated or mapped, not read from the plan. */
  get allocatedBytes(): number {
    return this.#bytes;
  }

  /** Whether the rank has a buffer: only the ranks of stages that use it do. */
  has(name: string): boolean {
    return this.#buffers.has(name);
  }

  /** The device memory of a buffer. */
  buffer(name: string): DeviceBuffer {
    const buffer = this.#buffers.get(name);
    invariant(buffer, `no buffer '${name}'`);
    return buffer;
  }

  /** Whether a buffer shares memory with files. */
  isMapped(name: string): boolean {
    return this.#mapped.has(name);
  }

  /** Writes bytes of a buffer. */
  write(name: string, offset: number, data: Uint8Array): void {
    const buffer = this.buffer(name);
    if (buffer instanceof HostExperts) buffer.write(offset, data);
    else this.device.write(buffer, offset, data);
  }

  /** The plan's entry of a buffer. */
  plan(name: string): PlanBuffer {
    const buffer = this.#plan.buffers[name];
    invariant(buffer, `no buffer '${name}'`);
    return buffer;
  }

  /** Sets an entire buffer to zero. */
  clear(name: string): void {
    const buffer = this.buffer(name);
    for (let at = 0; at < buffer.bytes; at += ZEROS.length) {
      const length = Math.min(ZEROS.length, buffer.bytes - at);
      this.device.write(buffer, at, ZEROS.subarray(0, length));
    }
  }
}
