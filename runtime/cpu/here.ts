/** Batches so short that the thread that waits for them executes them itself: to hand them to workers, and be notified by them, takes longer. */

import { RECORD } from "./print.ts";
import {
  type CompiledModule,
  type WasmMemory,
  webAssembly,
} from "./web_assembly.ts";

/** Milliseconds of a handover before one was measured, and the limits of what is believed of it. */
const HANDOVER = { first: 0.075, min: 0.02, max: 0.3 } as const;

/** By how much a handover that took longer, or less long, moves what is expected: expected is the middle of many. */
const TOWARDS = 1.1;

/** No batch that takes longer runs here, in milliseconds: whatever else the thread has to do would wait. */
const SHORT_AT_MOST = 1;

/** Milliseconds for each unit of `RECORD.cost`. */
const COST_UNIT = 1e-9;

/** Milliseconds for each unit of `RECORD.start` and `RECORD.end`. */
const TIME_UNIT = 1e-5;

/** The functions of a pool on its own thread, and how long they take. */
export class ShortBatches {
  readonly #memory: WasmMemory;
  readonly #words: Int32Array;
  readonly #functions: ((...args: number[]) => void)[] = [];
  /** Milliseconds of a workgroup, as the workers tell; absent: not known yet. */
  readonly #cost: (number | undefined)[] = [];
  /** Address of scratch memory. */
  scratch = 0;
  /** What a handover most likely takes, in milliseconds: to wake the workers, and to be notified by them. */
  #handover: number = HANDOVER.first;
  /** The part of a batch that workers together save. */
  readonly #saved: number;

  constructor(memory: WasmMemory, words: Int32Array, threads: number) {
    this.#memory = memory;
    this.#words = words;
    this.#saved = 1 - 1 / threads;
  }

  /** Make the functions of a module ready, as all workers do. */
  install(module: CompiledModule, first: number, count: number): void {
    const env = { memory: this.#memory };
    const { exports } = new webAssembly.Instance(module, { env });
    for (let i = 0; i < count; i++) {
      this.#functions[first + i] = exports[`run${i}`]!;
    }
  }

  /** Learn from records that workers have executed, in words `from` to `to`, and that took `elapsed` milliseconds with the handover. */
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

  /** Milliseconds up to which a batch is short: workers would save less of it than it takes to hand it over. */
  get #short(): number {
    return Math.min(this.#handover / this.#saved, SHORT_AT_MOST);
  }

  /** Whether the records in words `from` to `to` are known to take little time. */
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
      words[r + RECORD.start] = (last - origin) / TIME_UNIT;
      words[r + RECORD.end] = (now - origin) / TIME_UNIT;
      last = now;
    }
    if (performance.now() - origin < 2 * this.#short) return;
    // What they take depends on their data as well: the workers shall measure again.
    for (let r = from; r < to; r += words[r + RECORD.words]!) {
      this.#cost[words[r]!] = undefined;
    }
  }
}
