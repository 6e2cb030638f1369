/** Series of runs that a device executes without the host between them. */

import type { Plan, Program } from "../spec/plan/plan.ts";
import type { DeviceBuffer } from "./device.ts";
import type { HostTensor } from "./host_tensor.ts";
import type { RankMemory } from "./memory.ts";
import { readOutput } from "./outputs.ts";
import type { RunAxes } from "./shard.ts";

/** Maximum runs of a series. */
const MAX_RUNS = 8;

/** Milliseconds of a series: new tokens are seen, and new requests start, after this time at the latest. */
const SERIES_MS = 8;

/** The length of a series, given the milliseconds of a run. */
export function seriesLength(runMs: number): number {
  return Math.max(1, Math.min(MAX_RUNS, Math.floor(SERIES_MS / runMs)));
}

/** Outputs of the runs of a series, copied before the next run. */
export class SeriesOutputs {
  readonly #plan: Plan;
  readonly #memory: RankMemory;
  /** Copies of buffers, by run. */
  readonly #copies: Map<string, DeviceBuffer>[] = [];

  constructor(plan: Plan, memory: RankMemory) {
    this.#plan = plan;
    this.#memory = memory;
  }

  /** Copies outputs of a run. */
  save(run: number, program: Program, outputs: readonly string[]): void {
    const { device } = this.#memory;
    const copies = this.#copies[run] ??= new Map();
    for (const output of outputs) {
      const { buffer } = program.outputs[output]!;
      const from = this.#memory.buffer(buffer);
      let to = copies.get(buffer);
      if (!to) {
        to = device.createBuffer(from.bytes, `'${buffer}' of run ${run}`);
        copies.set(buffer, to);
      }
      device.copy(from, 0, to, 0, from.bytes);
    }
  }

  /** Returns the copied outputs of the first `runs` runs. */
  async read(
    runs: number,
    program: Program,
    outputs: readonly string[],
    axes: RunAxes,
  ): Promise<{ [output: string]: HostTensor }[]> {
    const { device, rank } = this.#memory;
    return await Promise.all(
      this.#copies.slice(0, runs).map(async (copies) => {
        const memory = {
          device,
          rank,
          buffer: (name: string) => copies.get(name)!,
        };
        const from = {
          plan: this.#plan,
          ranks: [memory],
          remote: undefined,
          axes,
          everywhere: false,
          reads: [],
        };
        const tensors = await Promise.all(
          outputs.map((output) => readOutput(program.outputs[output]!, from)),
        );
        return Object.fromEntries(
          outputs.map((output, i) => [output, tensors[i]!]),
        );
      }),
    );
  }
}
