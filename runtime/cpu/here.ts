/** Batches so short that the thread that waits for them carries them out itself: to wake another, and be told by it, takes longer. */

import { RECORD } from "./print.ts";
import {
  type CompiledModule,
  type WasmMemory,
  webAssembly,
} from "./web_assembly.ts";

/** Milliseconds up to which a batch is short. About as long as it takes to wake a worker and be woken by it. */
const SHORT_MS = 0.15;

/** Milliseconds for each unit of `RECORD.cost`. */
const COST_UNIT = 1e-9;

/** The functions of a pool on its own thread, and how long they take. */
export class ShortBatches {
  readonly #memory: WasmMemory;
  readonly #words: Int32Array;
  readonly #functions: ((...args: number[]) => void)[] = [];
  /** Milliseconds of a workgroup, as the workers tell; absent: not known yet. */
  readonly #cost: (number | undefined)[] = [];
  /** Address of scratch memory. */
  scratch = 0;

  constructor(memory: WasmMemory, words: Int32Array) {
    this.#memory = memory;
    this.#words = words;
  }

  /** Make the functions of a module ready, as all workers do. */
  install(module: CompiledModule, first: number, count: number): void {
    const env = { memory: this.#memory };
    const { exports } = new webAssembly.Instance(module, { env });
    for (let i = 0; i < count; i++) {
      this.#functions[first + i] = exports[`run${i}`]!;
    }
  }

  /** Learn what workgroups take from records that workers have carried out, in words `from` to `to`. */
  learn(from: number, to: number): void {
    const words = this.#words;
    for (let r = from; r < to; r += words[r + RECORD.words]!) {
      this.#cost[words[r]!] = COST_UNIT * words[r + RECORD.cost]!;
    }
  }

  /** Whether the records in words `from` to `to` are known to take little time. */
  areShort(from: number, to: number): boolean {
    const words = this.#words;
    let ms = 0;
    for (let r = from; r < to; r += words[r + RECORD.words]!) {
      const cost = this.#cost[words[r]!];
      if (cost === undefined) return false;
      ms += cost * words[r + RECORD.groups]!;
      if (ms > SHORT_MS) return false;
    }
    return true;
  }

  /** Carry records out, and write when each ran where that is wanted. */
  run(from: number, to: number, timed: boolean): void {
    const words = this.#words;
    const origin = performance.now();
    let last = origin;
    for (let r = from; r < to; r += words[r + RECORD.words]!) {
      this.#functions[words[r]!]!(
        4 * r,
        0,
        words[r + RECORD.groups]!,
        this.scratch,
      );
      if (!timed) continue;
      const now = performance.now();
      words[r + RECORD.start] = (last - origin) * 1e5;
      words[r + RECORD.end] = (now - origin) * 1e5;
      last = now;
    }
    if (performance.now() - origin < 2 * SHORT_MS) return;
    // What they take depends on their data as well: the workers shall measure again.
    for (let r = from; r < to; r += words[r + RECORD.words]!) {
      this.#cost[words[r]!] = undefined;
    }
  }
}
