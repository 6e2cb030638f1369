/** Timestamps of launches on one WebGPU device. */

import type { LaunchTiming } from "../device.ts";

/** Launches per query set; two timestamps each, WebGPU allows 4096. */
const CAPACITY = 2048;

interface Block {
  readonly queries: GPUQuerySet;
  readonly resolved: GPUBuffer;
  readonly readable: GPUBuffer;
  used: number;
}

/** Gives each launch a separate pass with timestamps at both ends. */
export class GpuTimer {
  readonly #device: GPUDevice;
  #blocks: Block[] = [];

  constructor(device: GPUDevice) {
    this.#device = device;
  }

  /** Begins the pass of one launch. */
  beginPass(encoder: GPUCommandEncoder, label: string): GPUComputePassEncoder {
    let block = this.#blocks.at(-1);
    if (!block || block.used === CAPACITY) {
      this.#blocks.push(block = this.#block());
    }
    const at = 2 * block.used++;
    return encoder.beginComputePass({
      label,
      timestampWrites: {
        querySet: block.queries,
        beginningOfPassWriteIndex: at,
        endOfPassWriteIndex: at + 1,
      },
    });
  }

  /** Resolves the timestamps so far; recorded at the end of every submission. */
  resolve(encoder: GPUCommandEncoder): void {
    for (const { queries, resolved, readable, used } of this.#blocks) {
      if (used === 0) continue;
      encoder.resolveQuerySet(queries, 0, 2 * used, resolved, 0);
      encoder.copyBufferToBuffer(resolved, 0, readable, 0, 16 * used);
    }
  }

  /** Returns and clears the launches submitted so far. */
  async take(): Promise<LaunchTiming[]> {
    const blocks = this.#blocks;
    // One block is retained for the following launches.
    this.#blocks = blocks.slice(0, 1);
    const timings: LaunchTiming[] = [];
    for (const [i, block] of blocks.entries()) {
      if (block.used === 0) continue;
      await block.readable.mapAsync(1 /* GPUMapMode.READ */);
      const times = new BigUint64Array(block.readable.getMappedRange());
      for (let at = 0; at < block.used; at++) {
        timings.push({
          start: Number(times[2 * at]!),
          end: Number(times[2 * at + 1]!),
        });
      }
      block.readable.unmap();
      block.used = 0;
      if (i > 0) destroy(block);
    }
    return timings;
  }

  #block(): Block {
    const size = 16 * CAPACITY;
    return {
      queries: this.#device.createQuerySet({
        type: "timestamp",
        count: 2 * CAPACITY,
      }),
      resolved: this.#device.createBuffer({ size, usage: 0x200 | 0x4 }), // QUERY_RESOLVE | COPY_SRC
      readable: this.#device.createBuffer({ size, usage: 0x1 | 0x8 }), // MAP_READ | COPY_DST
      used: 0,
    };
  }
}

function destroy({ queries, resolved, readable }: Block): void {
  queries.destroy();
  resolved.destroy();
  readable.destroy();
}
