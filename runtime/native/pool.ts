/**
 * Threads of compiled C over memory outside of JavaScript. Kernels of all native devices of a pool run here, in order.
 */

import { totalmem } from "node:os";
import { setImmediate } from "node:timers/promises";
import { MachineError } from "../../spec/errors.ts";
import { kernelText } from "../../spec/kernel/exact_json.ts";
import { MAX_ELEMENTS } from "../../spec/limits.ts";
import {
  DEADLINE_MS,
  DeadlineError,
  type DeviceKernel,
  type LaunchTiming,
  type Streaming,
} from "../device.ts";
import { HOST_LIMITS, type HostKernel, type HostPool } from "../host/device.ts";
import { type Batch, HostRecords } from "../host/records.ts";
import { MAX_NATIVE_THREADS } from "../available_cores.ts";
import { moduleHash } from "../cache/module_hash.ts";
import { NativeHeap } from "./heap.ts";
import { loadNative, type NativeLibrary } from "./library.ts";
import type { CompiledFunction } from "./objects.ts";
import { PRINTER, printKernel } from "./print.ts";
import { BINDING_WORDS, RECORD, RECORD_WORDS } from "./records.ts";
import { savedShapes, saveShapes } from "./shapes.ts";
import { COPY, COPY_BLOCK, WRITE } from "./threads.ts";

const printer = moduleHash(PRINTER);

/**
 * Milliseconds up to which launches run on the waiting thread: sending them to another costs a sixth of a millisecond,
 * including cold caches. By prediction, the event loop waits for up to 8 ms per run; after runs of that total, timers
 * and servers run.
 */
const HERE_MS = 8;

/** Limits of a native device. `memory`: bytes of all buffers of its pool together. */
export const NATIVE_LIMITS = {
  maxBufferSize: Number.MAX_SAFE_INTEGER,
  maxStorageBufferBindingSize: 4 * MAX_ELEMENTS,
  ...HOST_LIMITS,
  memory: totalmem(),
} as const satisfies { readonly [limit: string]: number };

/** Options of a pool. */
export interface NativePoolOptions {
  /**
   * Milliseconds for the work submitted at once, at most a run. The pool is unusable afterwards. Default: ten minutes.
   */
  readonly deadlineMs?: number;
  /** Maximum memory of experts, which are then streamed from their files. Default: files are mapped. */
  readonly expertBytes?: number | undefined;
  /** Whether kernels are untrusted: they never run on the waiting thread, which cannot be interrupted. */
  readonly untrusted?: boolean;
  /** Receives a notice for the user. */
  readonly notice?: (text: string) => void;
}

/** One pool for all ranks of a process. */
export class NativePool implements HostPool<Uint32Array> {
  readonly name: string;
  readonly limits = NATIVE_LIMITS;
  readonly heap: NativeHeap;
  readonly threads: number;
  /** Whether experts are streamed even if their files could be mapped. */
  readonly streams: boolean;
  readonly #library: NativeLibrary;
  readonly #pool: bigint;
  readonly #deadlineMs: number;
  readonly #untrusted: boolean;
  #notice: ((text: string) => void) | undefined;
  readonly #kernels = new Map<string, HostKernel>();
  /** Names of kernels by number. */
  readonly #names: (string | undefined)[] = [];
  readonly records = new HostRecords(
    (length) => new Uint32Array(length),
    (batch, waited) => this.#run(batch, waited),
  );
  /** Milliseconds of runs on the waiting thread since the event loop last ran. */
  #here = 0;
  /** Groups of streamed weights: by their numbers, by their last list of tiles, and by bindings. */
  readonly #groups = new Map<string, number>();
  readonly #lastGroups = new WeakMap<object, number>();
  readonly #streamed = new WeakMap<
    Uint32Array,
    { readonly group: number; readonly tiles: number }
  >();
  /** The last write of measured shapes. */
  #saved: Promise<void> = Promise.resolve();
  #failure: Error | undefined;
  #closed = false;

  private constructor(
    library: NativeLibrary,
    pool: bigint,
    options: NativePoolOptions & { readonly threads: number },
  ) {
    const { threads } = options;
    this.#library = library;
    this.#pool = pool;
    this.threads = threads;
    this.#deadlineMs = options.deadlineMs ?? DEADLINE_MS;
    this.#untrusted = options.untrusted ?? false;
    this.#notice = options.notice;
    const { expertBytes } = options;
    this.streams = expertBytes !== undefined;
    // A part of the memory limit of experts is reserved.
    this.heap = this.streams
      ? new NativeHeap(library.runtime, pool, Infinity)
      : new NativeHeap(library.runtime, pool);
    if (expertBytes !== undefined) library.runtime.limit(pool, expertBytes);
    this.name =
      `CPU (native, ${library.objects.compiler.version}, ${threads} thread${
        threads === 1 ? "" : "s"
      })`;
  }

  /** Starts the threads. Throws MachineError without a compiler or koffi. */
  static async open(
    threads: number,
    options: NativePoolOptions = {},
  ): Promise<NativePool> {
    if (
      !Number.isInteger(threads) || threads < 1 || threads > MAX_NATIVE_THREADS
    ) {
      throw new RangeError(
        `Cannot start ${threads} threads: a native CPU device has 1 to ${MAX_NATIVE_THREADS}. Give a number in that range`,
      );
    }
    const library = await loadNative();
    const pool = library.runtime.open(threads);
    if (pool === 0n) {
      throw new MachineError(
        "Cannot start the native CPU device: the system is out of memory. Close other programs",
      );
    }
    library.runtime.setShapes(pool, await savedShapes(library.objects));
    return new NativePool(library, pool, { ...options, threads });
  }

  /** Prints and compiles kernels that the pool does not have. */
  async prepare(
    kernels: readonly DeviceKernel[],
    progress?: (done: number, total: number) => void,
  ): Promise<HostKernel[]> {
    this.#check();
    const { objects } = this.#library;
    const keys = kernels.map(({ tree, fused = false }) =>
      `${fused} ${kernelText(tree)}`
    );
    const fresh = new Map<string, DeviceKernel>();
    kernels.forEach((kernel, i) => {
      if (!this.#kernels.has(keys[i]!)) fresh.set(keys[i]!, kernel);
    });
    if (fresh.size === 0) {
      progress?.(kernels.length, kernels.length);
      return keys.map((key) => this.#kernels.get(key)!);
    }
    const { lanes } = objects.compiler;
    const ready = kernels.length - fresh.size;
    const version = await printer;
    const limit = this.#untrusted
      ? AbortSignal.timeout(this.#deadlineMs)
      : undefined;
    const find = () =>
      objects.functions(
        () =>
          Array.from(
            fresh.values(),
            ({ tree, fused = false }) => printKernel(tree, { lanes, fused }),
          ).flat(),
        {
          of: version && [version, ...fresh.keys()].join("\n"),
          progress: (done, total) =>
            progress?.(
              ready + Math.floor(fresh.size * done / total),
              kernels.length,
            ),
          ...limit ? { signal: limit } : {},
        },
      );
    const first = await find().catch((error) => {
      throw limit?.aborted
        ? new MachineError(
          `Cannot compile the kernels of the plan: ${objects.compiler.command} has not ended within ${
            this.#deadlineMs / 1000
          } s. Allow more with --deadline if they need that`,
        )
        : error;
    });
    // After all work has ended, the table of kernels and scratch memory can be replaced.
    await this.settle();
    let loaded = this.#load(first);
    if (loaded.includes(-1)) {
      objects.leave("the system does not load what is in it");
      loaded = this.#load(await find());
    }
    if (objects.unkept !== undefined) {
      this.#notice?.(
        `Cannot keep compiled kernels: ${objects.unkept}. Each run compiles them again`,
      );
      this.#notice = undefined;
    }
    [...fresh].forEach(([key, { tree }], i) => {
      const index = loaded[i]!;
      if (index < 0) {
        throw new MachineError(
          `Cannot load the compiled kernel '${tree.name}': the system refuses it. Use --adapter cpu`,
        );
      }
      this.#names[index] = tree.name;
      this.#kernels.set(key, { index, bindings: tree.bindings.length });
    });
    return keys.map((key) => this.#kernels.get(key)!);
  }

  /**
   * Loads kernels. Returns the number of the first function of each, or -1 if the system refuses one of its functions.
   */
  #load(functions: readonly CompiledFunction[]): number[] {
    const { runtime } = this.#library;
    const kernels: number[] = [];
    let isFirst = true;
    for (const { path, name, scratch, end } of functions) {
      const number = runtime.load(this.#pool, path, name, { scratch, end });
      if (isFirst) kernels.push(number);
      else if (number < 0) kernels[kernels.length - 1] = -1;
      isFirst = end === undefined;
    }
    return kernels;
  }

  bind(
    ranges: readonly { readonly address: number; readonly bytes: number }[],
  ): Uint32Array {
    return Uint32Array.from(
      ranges.flatMap(({ address, bytes }) => [
        ...halves(address),
        ...halves(Math.ceil(bytes / 4)),
      ]),
    );
  }

  /** Makes launches with bindings wait for the experts of streamed weights in the list of tiles of a binding. */
  stream(
    bindings: Uint32Array,
    weights: readonly number[],
    { tiles, list }: { readonly tiles: number; readonly list: object },
  ): void {
    const key = weights.join();
    let group = this.#groups.get(key);
    if (group === undefined) {
      const all = Uint32Array.from(weights);
      const previous = this.#lastGroups.get(list) ?? 0;
      group = this.#library.runtime.group(this.#pool, all, previous);
      if (group === 0) {
        throw new MachineError(
          "Cannot stream experts: the system is out of memory. Close other programs",
        );
      }
      this.#groups.set(key, group);
    }
    this.#lastGroups.set(list, group);
    this.#streamed.set(bindings, { group, tiles });
  }

  /** Statistics of streaming so far. */
  streaming(): Streaming {
    return this.#library.runtime.streams(this.#pool).statistics;
  }

  /** Reserves a record followed by words. Returns its start. */
  #begin(kernel: number, groups: number, words: number): number {
    // Addresses in a record have 64 bits.
    const size = Math.ceil((RECORD_WORDS + words) / 2) * 2;
    const at = this.records.begin(size, RECORD_WORDS);
    const record = this.records.words;
    record[at + RECORD.words] = size;
    record[at + RECORD.kernel] = kernel;
    record[at + RECORD.groups] = groups;
    return at;
  }

  launch(
    kernel: HostKernel,
    bindings: Uint32Array,
    workgroups: readonly [number, number, number],
    times?: LaunchTiming[],
  ): void {
    const [x, y, z] = workgroups;
    if (x === 0 || y === 0 || z === 0) return;
    const at = this.#begin(kernel.index, x * y * z, bindings.length);
    const record = this.records.words;
    record[at + RECORD.x] = x;
    record[at + RECORD.y] = y;
    const streamed = this.#streamed.get(bindings);
    if (streamed) {
      record[at + RECORD.experts] = streamed.group;
      record[at + RECORD.tiles] = streamed.tiles;
    }
    record.set(bindings, at + RECORD_WORDS);
    if (times) this.records.time(at, times);
  }

  copy(from: number, to: number, bytes: number): void {
    if (bytes === 0) return;
    const groups = Math.ceil(bytes / COPY_BLOCK);
    const at = this.#begin(COPY, groups, 2 * BINDING_WORDS) + RECORD_WORDS;
    const bindings = [...halves(to), ...halves(bytes), ...halves(from)];
    this.records.words.set(bindings, at);
  }

  write(address: number, data: Uint8Array): void {
    if (this.records.isIdle) {
      return this.heap.view(address, data.length).set(data);
    }
    this.records.write(data, ({ done, bytes, words }) => {
      const at = this.#begin(WRITE, 1, BINDING_WORDS + words) + RECORD_WORDS;
      this.records.words.set(
        [...halves(address + done), ...halves(bytes)],
        at,
      );
      return at + BINDING_WORDS;
    });
  }

  async settle(): Promise<void> {
    await this.records.settle(true);
    this.#check();
  }

  submit(): void {
    // The next `settle` throws a failure.
    this.records.settle(false).catch(() => {});
  }

  /** Runs records: the first ones here if they are short and waited for, the others on another thread. */
  async #run(
    { words, used: to, timed }: Batch<Uint32Array>,
    waited: boolean,
  ): Promise<void> {
    this.#check();
    const { runtime } = this.#library;
    let from = 0;
    if (waited && !this.#untrusted) {
      const budget = 1e6 * HERE_MS;
      const started = performance.now();
      from = runtime.run(this.#pool, words, { from, to, budget });
      this.#here += performance.now() - started;
    }
    if (from < to || this.#here > HERE_MS) {
      this.#here = 0;
      await (from < to ? this.#aside(words, { from, to }) : setImmediate());
    }
    this.#checkFiles();
    if (runtime.shapeNews(this.#pool)) {
      const shapes = runtime.shapes(this.#pool);
      this.#saved = this.#saved
        .then(() => saveShapes(this.#library.objects, shapes))
        // Without shapes, runs are only slower.
        .catch(() => {});
    }
    for (const { at, times } of timed) {
      times.push({
        start: uint64At(words, at + RECORD.start),
        end: uint64At(words, at + RECORD.end),
      });
    }
  }

  async #aside(
    words: Uint32Array,
    range: { readonly from: number; readonly to: number },
  ): Promise<void> {
    const { runtime } = this.#library;
    const timer = setTimeout(() => {
      const at = runtime.position(this.#pool);
      const name = this.#names[words[at + RECORD.kernel]!];
      this.#failure ??= new DeadlineError(
        name === undefined ? [] : [name],
        this.#deadlineMs,
      );
      runtime.stop(this.#pool);
    }, this.#deadlineMs);
    try {
      await runtime.runAside(this.#pool, words, range);
    } finally {
      clearTimeout(timer);
    }
    this.#check();
  }

  #check(): void {
    if (this.#failure) throw this.#failure;
  }

  /** Throws if a mapped or streamed weight file is damaged: results are then invalid. */
  #checkFiles(): void {
    try {
      this.heap.checkFiles();
    } catch (error) {
      this.#failure ??= error as Error;
      throw error;
    }
  }

  /** Terminates the threads and frees all memory; ends running work early. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    this.#failure ??= new MachineError(
      "Cannot use the CPU device: it was destroyed. Open another",
    );
    this.#library.runtime.stop(this.#pool);
    await this.records.ended();
    this.heap.close();
    this.#library.runtime.close(this.#pool);
  }
}

/** An integer below 2^53 as two words, low word first. */
function halves(value: number): [number, number] {
  return [value % 2 ** 32, Math.floor(value / 2 ** 32)];
}

function uint64At(words: Uint32Array, at: number): number {
  return words[at]! + 2 ** 32 * words[at + 1]!;
}
