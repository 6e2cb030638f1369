/** The memory of one rank: its allocations, and which buffer of the plan lies in which. */

import { invariant } from "../spec/errors.ts";
import { onRank, type Plan, type PlanBuffer } from "../spec/plan.ts";
import type { Device, DeviceBuffer } from "./device.ts";

/** What buffers are cleared with: states are cleared for every prompt, and garbage of their size is collected beside the run. */
const ZEROS = new Uint8Array(1 << 20);

/** Buffers of one rank by name. */
export class RankMemory {
  readonly device: Device;
  readonly rank: number;
  readonly #plan: Plan;
  readonly #allocations: readonly DeviceBuffer[];
  readonly #bytes: number;

  /** Allocate everything that the plan lists for `rank`. */
  constructor(plan: Plan, device: Device, rank: number) {
    this.#plan = plan;
    this.device = device;
    this.rank = rank;
    let bytes = 0;
    this.#allocations = plan.allocations.map((allocation, i) => {
      const label = `rank ${rank} allocation ${i}`;
      const buffer = device.createBuffer(onRank(allocation.bytes, rank), label);
      bytes += buffer.bytes;
      return buffer;
    });
    this.#bytes = bytes;
  }

  /** Bytes that the device really gave; never read off the plan. */
  get allocatedBytes(): number {
    return this.#bytes;
  }

  /** The device memory of a buffer. */
  buffer(name: string): DeviceBuffer {
    return this.#allocations[this.plan(name).allocation]!;
  }

  /** The plan's entry of a buffer. */
  plan(name: string): PlanBuffer {
    const buffer = this.#plan.buffers[name];
    invariant(buffer, `no buffer '${name}'`);
    return buffer;
  }

  /** Set a whole buffer to zero. */
  clear(name: string): void {
    const bytes = onRank(this.plan(name).bytes, this.rank);
    for (let at = 0; at < bytes; at += ZEROS.length) {
      const length = Math.min(ZEROS.length, bytes - at);
      this.device.write(this.buffer(name), at, ZEROS.subarray(0, length));
    }
  }
}
