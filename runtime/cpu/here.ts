/** Short batches, executed by the waiting thread itself: sending them to workers and waiting would take longer. */

import { RECORD } from "./print.ts";
import {
  type CompiledModule,
  type WasmMemory,
  webAssembly,
} from "./web_assembly.ts";

/** Milliseconds of a handover before one was measured, and limits of its estimate. */
const HANDOVER = { first: 0.075, min: 0.02, max: 0.3 } as const;

/** Factor by which a longer or shorter handover changes the estimate, which is a running median. */
const TOWARDS = 1.1;

/** Maximum milliseconds of a batch that runs here: other work of the thread has to wait. */
const MAX_SHORT = 1;

/** Milliseconds per unit of `RECORD.cost`. */
const COST_UNIT = 1e-9;

/** Milliseconds per unit of `RECORD.start` and `RECORD.end`. */
const TIME_UNIT = 1e-5;

/** The functions of a pool on its own thread, and their durations. */
export class ShortBatches {
  readonly #memory: WasmMemory;
  readonly #words: Int32Array;
  readonly #functions: ((...args: number[]) => void)[] = [];
  /** Milliseconds of a workgroup, measured by the workers. Absent: unknown. */
  readonly #cost: (number | undefined)[] = [];
  /** Address of scratch memory. */
  scratch = 0;
  /** Estimated milliseconds of a handover: waking the workers and being notified by them. */
  #handover: number = HANDOVER.first;
  /** Fraction of a batch's time that several workers save. */
  readonly #saved: number;

  constructor(memory: WasmMemory, words: Int32Array, threads: number) {
    this.#memory = memory;
    this.#words = words;
    this.#saved = 1 - 1 / threads;
  }

  /** Installs the functions of a module, like all workers do. */
  install(module: CompiledModule, first: number, count: number): void {
    const env = { memory: this.#memory };
    const { exports } = new webAssembly.Instance(module, { env });
    for (let i = 0; i < count; i++) {
      this.#functions[first + i] = exports[`run${i}`]!;
    }
  }

  /**
   * Updates estimates from records executed by workers, in words `from` to `to`, which took `elapsed` milliseconds
   * including the handover.
   */
  learn(from: number, to: number, elapsed: number): void {
    const words = this.#words;
    let end = 0;
    for (let r = from; r < to; r += words[r + RECORD.words]!) {
      this.#cost[words[r]!] = COST_UNIT * words[r + RECORD.cost]!;
      end = words[r + RECORD.end]!;
    }
    const handover = this.#handover *
      (elapsed - TIME_UNIT * end > this.#handover ? TOWARDS : 1 / TOWARDS);
    this.#handover = Math.min(
      Math.max(handover, HANDOVER.min),
      HANDOVER.max,
    );
  }

  /** Maximum milliseconds of a short batch: workers would save less than the handover costs. */
  get #short(): number {
    return Math.min(this.#handover / this.#saved, MAX_SHORT);
  }

  /** Whether the records in words `from` to `to` are known to be short. */
  areShort(from: number, to: number): boolean {
    const words = this.#words;
    const short = this.#short;
    let ms = 0;
    for (let r = from; r < to; r += words[r + RECORD.words]!) {
      const cost = this.#cost[words[r]!];
      if (cost === undefined) return false;
      ms += cost * words[r + RECORD.groups]!;
      if (ms > short) return false;
    }
    return true;
  }

  /** Executes records, and writes their times on request. */
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
      words[r + RECORD.start] = (last - origin) / TIME_UNIT;
      words[r + RECORD.end] = (now - origin) / TIME_UNIT;
      last = now;
    }
    if (performance.now() - origin < 2 * this.#short) return;
    // Durations also depend on data: the workers measure them again.
    for (let r = from; r < to; r += words[r + RECORD.words]!) {
      this.#cost[words[r]!] = undefined;
    }
  }
}
