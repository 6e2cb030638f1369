/**
 * Worker threads over one shared memory. Kernels of all CPU devices of a pool run here, in the order of their launches.
 */

import { MachineError } from "../../spec/errors.ts";
import { kernelText } from "../../spec/kernel/exact_json.ts";
import type { Kernel } from "../../spec/kernel/tree.ts";
import {
  DEADLINE_MS,
  DeadlineError,
  type DeviceKernel,
  type LaunchTiming,
} from "../device.ts";
import type { HostKernel, HostPool, HostSpan } from "../host/device.ts";
import { type Batch, HostRecords } from "../host/records.ts";
import { compileKernels, type ModuleStore } from "./compiled.ts";
import {
  ARENA_ADDRESS,
  ARENA_BYTES,
  CONTROL,
  HEAP_ADDRESS,
  MAX_THREADS,
} from "./control.ts";
import { CPU_LIMITS, Heap } from "./heap.ts";
import { ShortBatches } from "./here.ts";
import { COPY, COPY_BLOCK, printMoves, WRITE } from "./moves.ts";
import { RECORD, RECORD_BYTES } from "./print.ts";
import { type CompiledModule, webAssembly } from "./web_assembly.ts";
import { WORKER_SOURCE } from "./worker.ts";

type Message =
  | { readonly done: true }
  | { readonly ready: number }
  | { readonly failed: string };

/** A waiting caller. */
interface Waiting {
  resolve(): void;
  reject(error: Error): void;
}

/** A printed kernel installed in all workers. */
export interface PoolKernel extends HostKernel {
  readonly name: string;
}

/** A thread that runs the worker program. */
export interface PoolWorker {
  postMessage(message: object): void;
  /** Whether it keeps the process alive. */
  hold(held: boolean): void;
  terminate(): Promise<unknown>;
}

/** Events of the threads of a pool. */
export interface WorkerEvents {
  message(message: unknown): void;
  /** The program failed or exited. */
  failure(reason: string): void;
}

/** Starts a thread with a program that communicates by `port`. */
export type StartWorker = (program: string, on: WorkerEvents) => PoolWorker;

/** Options of a pool. */
export interface CpuPoolOptions {
  /**
   * Milliseconds for the work submitted at once, at most a run. After it, the workers and the pool are terminated.
   * Default: ten minutes.
   */
  readonly deadlineMs?: number;
  /** Whether kernels are untrusted: they never run on the waiting thread, which cannot be interrupted. */
  readonly untrusted?: boolean;
  /** Cache of printed modules. Default: none. */
  readonly store?: ModuleStore | undefined;
}

/** One pool for all ranks of a process. */
export class CpuPool implements HostPool<Int32Array> {
  readonly name: string;
  readonly limits = CPU_LIMITS;
  readonly threads: number;
  readonly #deadlineMs: number;
  readonly #untrusted: boolean;
  readonly #store: ModuleStore | undefined;
  readonly heap = new Heap();
  #workers: PoolWorker[];
  #control: Int32Array;
  readonly #here: ShortBatches;
  #kernels = new Map<string, PoolKernel>();
  #count = 2;
  #scratch: HostSpan[] = [];
  #scratchBytes = 0;
  readonly records = new HostRecords(
    (length) => new Int32Array(length),
    (batch, waited) => this.#run(batch, waited),
  );
  #finish: Waiting | undefined;
  #ready = new Map<number, Waiting & { left: number }>();
  #nextReady = 0;
  #failure: Error | undefined;
  #pending = 0;

  constructor(
    threads: number,
    start: StartWorker | undefined,
    options: CpuPoolOptions = {},
  ) {
    this.#deadlineMs = options.deadlineMs ?? DEADLINE_MS;
    this.#untrusted = options.untrusted ?? false;
    this.#store = options.store;
    const min = start ? 1 : 0, max = start ? MAX_THREADS : 0;
    if (!Number.isInteger(threads) || threads < min || threads > max) {
      throw new RangeError(
        `Cannot start ${threads} threads: a CPU device has ${min} to ${max}. Give a number in that range`,
      );
    }
    this.threads = threads;
    this.name = `CPU (WebAssembly SIMD, ${
      threads === 0
        ? "no thread of its own"
        : `${threads} thread${threads === 1 ? "" : "s"}`
    })`;
    const { memory } = this.heap;
    this.#control = new Int32Array(memory.buffer, 0, HEAP_ADDRESS / 4);
    this.#here = new ShortBatches(memory, this.#control, threads);
    this.#workers = Array.from({ length: threads }, (_, index) => {
      const worker = start!(WORKER_SOURCE, {
        message: (message) => this.#receive(message as Message),
        failure: (reason) => this.#fail(reason),
      });
      worker.postMessage({ memory, index, threads });
      return worker;
    });
  }

  /**
   * Starts workers, and installs the functions that are not kernels. Without a way to start them their number must be
   * 0, and the waiting thread computes: it does nothing else meanwhile and cannot be interrupted.
   */
  static async open(
    threads: number,
    start: StartWorker | undefined,
    options?: CpuPoolOptions,
  ): Promise<CpuPool> {
    const pool = new CpuPool(threads, start, options);
    const module = await webAssembly.compile(printMoves());
    await pool.#install(module, COPY, 2);
    return pool;
  }

  /** Prints kernels that the pool does not have, and installs them in all workers. */
  async prepare(
    kernels: readonly DeviceKernel[],
    progress?: (done: number, total: number) => void,
  ): Promise<PoolKernel[]> {
    const texts = kernels.map(({ tree }) => kernelText(tree));
    const fresh = new Map<string, Kernel>();
    kernels.forEach(({ tree }, i) => {
      if (!this.#kernels.has(texts[i]!)) fresh.set(texts[i]!, tree);
    });
    if (fresh.size > 0) {
      const { module, scratch } = await compileKernels(
        fresh,
        this.#store,
      );
      const first = this.#count;
      this.#count += fresh.size;
      await this.#install(module, first, fresh.size);
      await this.#reserve(Math.max(...scratch));
      [...fresh].forEach(([text, kernel], i) => {
        this.#kernels.set(text, {
          index: first + i,
          name: kernel.name,
          bindings: kernel.bindings.length,
        });
      });
    }
    progress?.(kernels.length, kernels.length);
    return texts.map((text) => this.#kernels.get(text)!);
  }

  async #install(
    module: CompiledModule,
    first: number,
    count: number,
  ): Promise<void> {
    this.#check();
    this.#here.install(module, first, count);
    if (this.threads === 0) return;
    const id = this.#nextReady++;
    this.#hold();
    try {
      await new Promise<void>((resolve, reject) => {
        this.#ready.set(id, { left: this.threads, resolve, reject });
        for (const worker of this.#workers) {
          worker.postMessage({ id, module, first, count });
        }
        Atomics.add(this.#control, CONTROL.mail, 1);
        this.#wake(CONTROL.work);
        this.#wake(CONTROL.signal);
      });
    } finally {
      this.#ready.delete(id);
      this.#letGo();
    }
  }

  /** Ensures a minimum of scratch memory for every worker and this thread. */
  async #reserve(bytes: number): Promise<void> {
    if (bytes <= this.#scratchBytes) return;
    await this.settle();
    for (const span of this.#scratch) this.heap.release(span);
    this.#scratchBytes = bytes;
    const here = this.heap.allocate(bytes, "scratch");
    this.#here.scratch = here.address;
    this.#scratch = this.#workers.map((_, index) => {
      const span = this.heap.allocate(bytes, "scratch");
      this.#control[CONTROL.scratch + index] = span.address;
      return span;
    });
    this.#scratch.push(here);
  }

  #wake(word: number): void {
    Atomics.add(this.#control, word, 1);
    Atomics.notify(this.#control, word);
  }

  /** The process stays alive while work is pending. */
  #hold(): void {
    if (this.#pending++ === 0) this.#workers.forEach((w) => w.hold(true));
  }
  #letGo(): void {
    if (--this.#pending === 0) this.#workers.forEach((w) => w.hold(false));
  }

  #receive(message: Message): void {
    if ("done" in message) this.#finish?.resolve();
    else if ("failed" in message) this.#fail(message.failed);
    else {
      const ready = this.#ready.get(message.ready);
      if (ready && --ready.left === 0) ready.resolve();
    }
  }

  #fail(reason: string): void {
    this.#stop(
      new MachineError(
        `Cannot continue with the CPU device: a worker stopped (${reason}). Start again`,
      ),
    );
  }

  /** Stops all work. Waiting callers get the reason. */
  #stop(failure: Error): void {
    this.#failure ??= failure;
    this.#finish?.reject(this.#failure);
    for (const waiting of this.#ready.values()) waiting.reject(this.#failure);
  }

  #check(): void {
    if (this.#failure) throw this.#failure;
  }

  /** Reserves a record followed by words. Returns its start. */
  #begin(words: number): number {
    const at = this.records.begin(words, RECORD_BYTES / 4);
    this.records.words[at + RECORD.words] = words;
    return at;
  }

  /** Address and number of elements of each range. */
  bind(
    ranges: readonly { readonly address: number; readonly bytes: number }[],
  ): Int32Array {
    return Int32Array.from(
      ranges.flatMap(({ address, bytes }) => [address, Math.floor(bytes / 4)]),
    );
  }

  /** Records a launch; `times` receives its time. */
  launch(
    kernel: HostKernel,
    bindings: Int32Array,
    workgroups: readonly [number, number, number],
    times?: LaunchTiming[],
  ): void {
    const [x, y, z] = workgroups;
    if (x === 0 || y === 0 || z === 0) return;
    const at = this.#begin(RECORD_BYTES / 4 + bindings.length);
    const record = this.records.words;
    record[at] = kernel.index;
    record[at + RECORD.groups] = x * y * z;
    record[at + RECORD.x] = x;
    record[at + RECORD.y] = y;
    record.set(bindings, at + RECORD_BYTES / 4);
    if (times) this.records.time(at, times);
  }

  /** Records a copy between addresses. */
  copy(from: number, to: number, bytes: number): void {
    if (bytes === 0) return;
    const at = this.#begin(RECORD_BYTES / 4 + 2);
    const record = this.records.words;
    record[at] = COPY;
    record[at + RECORD.groups] = Math.ceil(bytes / COPY_BLOCK);
    record[at + RECORD.x] = bytes;
    record[at + RECORD_BYTES / 4] = to;
    record[at + RECORD_BYTES / 4 + 1] = from;
  }

  /** Writes bytes immediately if nothing is pending, else in order. */
  write(address: number, data: Uint8Array): void {
    if (this.records.isIdle) {
      return this.heap.view(address, data.length).set(data);
    }
    this.records.write(data, ({ done, bytes, words }) => {
      const head = RECORD_BYTES / 4 + 1;
      const at = this.#begin(head + words);
      const record = this.records.words;
      record[at] = WRITE;
      record[at + RECORD.groups] = 1;
      record[at + RECORD.x] = bytes;
      record[at + RECORD_BYTES / 4] = address + done;
      return at + head;
    });
  }

  /** Runs everything recorded so far and waits for it, but not for later records. */
  async settle(): Promise<void> {
    await this.records.settle(true);
    this.#check();
  }

  /** Starts everything recorded so far. */
  submit(): void {
    // The next `settle` throws a failure.
    this.records.settle(false).catch(() => {});
  }

  /**
   * Sends the records to the workers, as many at a time as the arena can store. Short ones run here if the caller
   * waits.
   */
  async #run(
    { words: records, used, timed: launches }: Batch<Int32Array>,
    waited: boolean,
  ): Promise<void> {
    this.#check();
    const timed = [...launches];
    const room = ARENA_BYTES / 4;
    for (let start = 0; start < used;) {
      let end = start;
      while (end < used) {
        const next = end + records[end + RECORD.words]!;
        if (next - start > room) break;
        end = next;
      }
      this.#control.set(records.subarray(start, end), ARENA_ADDRESS / 4);
      const origin = performance.now() * 1e6;
      const to = ARENA_ADDRESS / 4 + end - start;
      if (this.#isForHere(to, waited)) {
        this.#runHere(to, timed.length > 0);
      } else {
        await this.#batch(end - start);
        const elapsed = performance.now() - origin / 1e6;
        this.#here.learn(ARENA_ADDRESS / 4, to, elapsed);
      }
      while (timed.length > 0 && timed[0]!.at < end) {
        const { at, times } = timed.shift()!;
        const base = ARENA_ADDRESS / 4 + at - start;
        times.push({
          start: origin + 10 * this.#control[base + RECORD.start]!,
          end: origin + 10 * this.#control[base + RECORD.end]!,
        });
      }
      start = end;
    }
  }

  /** Whether this thread executes the batch in the arena. */
  #isForHere(to: number, waited: boolean): boolean {
    if (this.threads === 0) return true;
    return waited && !this.#untrusted &&
      this.#here.areShort(ARENA_ADDRESS / 4, to);
  }

  /** Executes the batch in the arena. A kernel that fails here is reported like one that fails in a worker. */
  #runHere(to: number, timed: boolean): void {
    try {
      this.#here.run(ARENA_ADDRESS / 4, to, timed);
    } catch (error) {
      this.#fail(String(error));
      this.#check();
    }
  }

  async #batch(words: number): Promise<void> {
    this.#hold();
    const timer = setTimeout(() => {
      this.#stop(this.#late(words));
      for (const worker of this.#workers) void worker.terminate();
    }, this.#deadlineMs);
    try {
      await new Promise<void>((resolve, reject) => {
        this.#finish = { resolve, reject };
        Atomics.store(this.#control, CONTROL.batch, words);
        this.#wake(CONTROL.work);
      });
    } finally {
      clearTimeout(timer);
      this.#finish = undefined;
      this.#letGo();
    }
  }

  /** The first record in the arena that has not run is the one that takes too long. */
  #late(words: number): DeadlineError {
    const control = this.#control;
    let at = ARENA_ADDRESS / 4;
    const end = at + words;
    while (at < end && control[at + RECORD.end] !== 0) {
      at += control[at + RECORD.words]!;
    }
    const index = at < end ? control[at] : undefined;
    for (const kernel of this.#kernels.values()) {
      if (kernel.index === index) {
        return new DeadlineError([kernel.name], this.#deadlineMs);
      }
    }
    return new DeadlineError([], this.#deadlineMs);
  }

  /** Terminates the workers. Until they have exited they keep the process alive. */
  async close(): Promise<void> {
    this.#hold();
    this.#stop(
      new MachineError(
        "Cannot use the CPU device: it was destroyed. Open another",
      ),
    );
    await Promise.all(this.#workers.map((worker) => worker.terminate()));
  }
}
