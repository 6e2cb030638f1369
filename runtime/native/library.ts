/** The compiled runtime, called through koffi. Both are optional and loaded on demand. */

import type { LibraryHandle } from "koffi";
import { MachineError } from "../../spec/errors.ts";
import type { Streaming } from "../device.ts";
import { importKoffi } from "../koffi.ts";
import { findCompiler, whyNoCompiler } from "./compiler.ts";
import { ObjectCache } from "./objects.ts";
import { MAX_SHAPES, SHAPE_WORDS } from "./shapes.ts";
import { NO_END, THREADS_IN_C } from "./threads.ts";

type Callable = ReturnType<LibraryHandle["func"]>;

/** Functions of the runtime; `threads.ts` contains their text. */
export interface Runtime {
  /** Creates a pool of threads. Returns 0 without memory. */
  open(threads: number): bigint;
  close(pool: bigint): void;
  /**
   * Number of a kernel in a pool, or -1. If it has an `end`, the next loaded kernel executes the workgroups along y
   * from there on.
   */
  load(
    pool: bigint,
    path: string,
    name: string,
    of: { readonly scratch: number; readonly end?: number | undefined },
  ): number;
  /**
   * Runs records from word `from` to word `to`. `budget`: nanoseconds, 0 for all records. Returns the word that it
   * reached.
   */
  run(
    pool: bigint,
    words: Uint32Array,
    range: {
      readonly from: number;
      readonly to: number;
      readonly budget: number;
    },
  ): number;
  /** The same on another thread, without a budget. */
  runAside(
    pool: bigint,
    words: Uint32Array,
    range: { readonly from: number; readonly to: number },
  ): Promise<number>;
  /** Ends a run early. */
  stop(pool: bigint): void;
  /** The word of the current or last record. */
  position(pool: bigint): number;
  /** Allocates zeroed memory with guards on both sides. Returns 0 without memory. */
  allocate(bytes: number): number;
  free(address: number, bytes: number): void;
  /** Maps parts of files, each a descriptor, an offset and a number of bytes. Returns 0 on failure. */
  map(parts: BigUint64Array): number;
  unmap(address: number, bytes: number): void;
  /** Bytes of a page of memory. */
  readonly pageBytes: number;
  /**
   * The number of a weight of experts in several mappings. `bases`: for each expert, the address of the first expert, if
   * all were in its mapping. Returns -1 without memory.
   */
  place(pool: bigint, bases: BigUint64Array): number;
  /** An address in mapped pages that their file no longer has; 0 if there is none. Nothing runs after that. */
  lost(): number;
  /** A streamed weight of parts of files, one per expert. Undefined if the system cannot stream it. */
  stream(
    pool: bigint,
    parts: BigUint64Array,
  ): { readonly weight: number; readonly address: number } | undefined;
  unstream(pool: bigint, weight: number): void;
  /**
   * The group of the weights of a launch that are streamed or in several mappings, following a group with the same list
   * of tiles, or 0. Groups count from 1; 0: no memory.
   */
  group(pool: bigint, weights: Uint32Array, previous: number): number;
  /** Sets the maximum memory of all streamed experts together. */
  limit(pool: bigint, bytes: number): void;
  /** Statistics of streaming so far. */
  streams(pool: bigint): {
    readonly statistics: Streaming;
    /** Whether a read failed. Nothing runs after that. */
    readonly failed: boolean;
  };
  /** Whether shapes of prefetches were measured since the last call. */
  shapeNews(pool: bigint): boolean;
  /** Measured shapes, `SHAPE_WORDS` each. */
  shapes(pool: bigint): Uint32Array;
  /** Sets shapes that were measured earlier, before the first run. */
  setShapes(pool: bigint, shapes: Uint32Array): void;
  /** Memory as an ArrayBuffer, valid until it is freed. */
  view(address: number, bytes: number): ArrayBuffer;
}

/** Parts of the native device. */
export interface NativeLibrary {
  readonly objects: ObjectCache;
  readonly runtime: Runtime;
}

let loaded: Promise<NativeLibrary> | undefined;

/** Compiles and loads the runtime, once. Throws MachineError without a compiler or koffi. */
export function loadNative(): Promise<NativeLibrary> {
  return loaded ??= load();
}

/** Why there is no native device on this machine, or undefined. */
export async function whyNotNative(): Promise<string | undefined> {
  if (await findCompiler() === undefined) {
    return whyNoCompiler();
  }
  try {
    await importKoffi();
    return undefined;
  } catch {
    return "the optional package 'koffi' could not be loaded";
  }
}

async function load(): Promise<NativeLibrary> {
  const compiler = await findCompiler();
  const why = await whyNotNative();
  if (compiler === undefined || why !== undefined) {
    throw new MachineError(
      `Cannot use the native CPU device: ${why}. Install it, or use --adapter cpu`,
    );
  }
  const objects = new ObjectCache(compiler);
  const koffi = await importKoffi();
  const library = await loadLibrary(objects, koffi.load);
  const bind = (text: string) => library.func(text);
  const open = bind("void *switchyard_open(uint32_t threads)");
  const close = bind("void switchyard_close(void *pool)");
  const loadKernel = bind(
    "int32_t switchyard_load(void *pool, const char *path, const char *name, uint64_t scratch, uint32_t end)",
  );
  const run = bind(
    "uint64_t switchyard_run(void *pool, void *words, uint64_t from, uint64_t to, double budget)",
  );
  const stop = bind("void switchyard_stop(void *pool)");
  const position = bind("uint64_t switchyard_position(void *pool)");
  const allocate = bind("void *switchyard_allocate(uint64_t bytes)");
  const free = bind("void switchyard_free(void *address, uint64_t bytes)");
  const map = bind("void *switchyard_map(uint64_t count, void *parts)");
  const unmap = bind("void switchyard_unmap(void *address, uint64_t bytes)");
  const lost = bind("void *switchyard_lost()");
  const pageBytes = bind("uint64_t switchyard_page_bytes()");
  const place = bind(
    "int64_t switchyard_place(void *pool, uint64_t experts, void *bases)",
  );
  const stream = bind(
    "int64_t switchyard_stream(void *pool, uint64_t count, void *parts)",
  );
  const streamed = bind(
    "void *switchyard_streamed(void *pool, uint32_t weight)",
  );
  const unstream = bind(
    "void switchyard_unstream(void *pool, uint32_t weight)",
  );
  const group = bind(
    "uint32_t switchyard_group(void *pool, uint32_t count, void *weights, uint32_t previous)",
  );
  const limit = bind("void switchyard_limit(void *pool, uint64_t bytes)");
  const streams = bind("void switchyard_streams(void *pool, void *to)");
  const shapeNews = bind("uint32_t switchyard_shape_news(void *pool)");
  const shapes = bind("uint32_t switchyard_shapes(void *pool, void *to)");
  const setShapes = bind(
    "void switchyard_set_shapes(void *pool, void *from, uint32_t count)",
  );
  const runtime: Runtime = {
    open: (threads) => open(threads) ?? 0n,
    close: (pool) => close(pool),
    load: (pool, path, name, { scratch, end = NO_END }) =>
      loadKernel(pool, path, name, scratch, end),
    run: (pool, words, { from, to, budget }) =>
      Number(run(pool, words, from, to, budget)),
    runAside: (pool, words, { from, to }) =>
      aside(run, pool, words, from, to, 0),
    stop: (pool) => stop(pool),
    position: (pool) => Number(position(pool)),
    allocate: (bytes) => Number(allocate(bytes) ?? 0n),
    free: (address, bytes) => free(BigInt(address), bytes),
    map: (parts) => Number(map(parts.length / 3, parts) ?? 0n),
    unmap: (address, bytes) => unmap(BigInt(address), bytes),
    lost: () => Number(lost() ?? 0n),
    pageBytes: Number(pageBytes()),
    place: (pool, bases) => Number(place(pool, bases.length, bases)),
    stream: (pool, parts) => {
      const weight = Number(stream(pool, parts.length / 3, parts));
      if (weight < 0) return undefined;
      return { weight, address: Number(streamed(pool, weight)) };
    },
    unstream: (pool, weight) => unstream(pool, weight),
    group: (pool, weights, previous) =>
      group(pool, weights.length, weights, previous),
    limit: (pool, bytes) => limit(pool, bytes),
    streams: (pool) => {
      const counters = new Float64Array(7);
      streams(pool, counters);
      const [bytesRead = 0, hits = 0, misses = 0, waited = 0, ...rest] =
        counters;
      const [reading = 0, residentBytes = 0, failed = 0] = rest;
      return {
        statistics: {
          bytesRead,
          hits,
          misses,
          waitedMs: waited / 1e6,
          readMs: reading / 1e6,
          residentBytes,
        },
        failed: failed > 0,
      };
    },
    shapeNews: (pool) => shapeNews(pool) !== 0,
    shapes: (pool) => {
      const words = new Uint32Array(SHAPE_WORDS * MAX_SHAPES);
      return words.subarray(0, SHAPE_WORDS * shapes(pool, words));
    },
    setShapes: (pool, words) =>
      setShapes(pool, words, words.length / SHAPE_WORDS),
    view: (address, bytes) => koffi.view(BigInt(address), bytes),
  };
  // A library is unloaded when its handle and functions are collected: the closures above retain them.
  return { objects, runtime };
}

/** Loads the runtime. A second attempt uses a private folder, because systems may refuse to load from the first. */
async function loadLibrary(
  objects: ObjectCache,
  load: (path: string) => LibraryHandle,
): Promise<LibraryHandle> {
  try {
    return load(await objects.library(THREADS_IN_C));
  } catch (error) {
    if (error instanceof MachineError) throw error;
    objects.leave(String(error));
  }
  try {
    return load(await objects.library(THREADS_IN_C));
  } catch (error) {
    if (error instanceof MachineError) throw error;
    throw new MachineError(
      `Cannot load the native runtime: ${String(error)}. Use --adapter cpu`,
    );
  }
}

function aside(call: Callable, ...args: unknown[]): Promise<number> {
  return new Promise((resolve, reject) => {
    call.async(...args, (error: Error | null, result: number | bigint) => {
      if (error) reject(error);
      else resolve(Number(result));
    });
  });
}
