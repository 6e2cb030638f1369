/** Memory outside of JavaScript for the buffers of native devices. */

import { totalmem } from "node:os";
import { DataError, MachineError } from "../../spec/errors.ts";
import { sum } from "../../spec/sum.ts";
import type { FileRun } from "../device.ts";
import type { ExpertSpans, HostSpan } from "../host/device.ts";
import type { Runtime } from "./library.ts";

/** Maximum bytes of a cached view: creating one takes as long as copying some thousand bytes. */
const SMALL_VIEW = 1 << 16;

/** Maximum number of mappings of a weight: a launch runs once for each, and systems limit mappings. */
const MAX_MAPPINGS = 32;
/** Minimum bytes of a weight per mapping: launches with less need more time to start. */
const MIN_MAPPED = 1 << 20;
/** Descriptor of addresses without a file. */
const HOLE = -1;

/** Allocates memory, and creates views of it. */
export class NativeHeap {
  readonly #runtime: Runtime;
  /** Maximum bytes of all allocations together. */
  readonly #limit: number;
  #used = 0;
  /** Size of each allocation by address. */
  readonly #sizes = new Map<number, number>();
  /** Small views by address; runs request them repeatedly. */
  readonly #views = new Map<number, Uint8Array>();
  /** Mapped parts of files by address. */
  readonly #maps = new Map<number, readonly FileRun[]>();
  /** Numbers of streamed weights by address. */
  readonly #streamed = new Map<number, number>();
  /** Whether there were experts in several mappings. */
  #placed = false;
  readonly #pool: bigint;

  constructor(runtime: Runtime, pool: bigint, limit = totalmem()) {
    this.#runtime = runtime;
    this.#pool = pool;
    this.#limit = limit;
  }

  allocate(bytes: number, label: string): HostSpan {
    const address = this.#used + bytes > this.#limit
      ? 0
      : this.#runtime.allocate(bytes);
    if (address === 0) {
      const mib = (n: number) => `${Math.ceil(n / 2 ** 20)} MiB`;
      throw new MachineError(
        `Cannot create buffer '${label}' on the native CPU device: it needs ${
          mib(bytes)
        } and ${
          mib(this.#limit - this.#used)
        } of this machine's memory are left. Use more ranks on other hosts, or lower the bounds of the model`,
      );
    }
    this.#used += bytes;
    this.#sizes.set(address, bytes);
    return { address, size: bytes };
  }

  /** Maps parts of files. Undefined if pages do not allow it. Files do not count as memory of the heap. */
  map(runs: readonly FileRun[]): HostSpan | undefined {
    const address = this.#runtime.map(wordsOf(runs));
    if (address === 0) return undefined;
    const size = sizeOf(runs);
    this.#maps.set(address, runs);
    return { address, size };
  }

  /**
   * Maps concatenated experts of equal size. Experts whose offsets in pages do not allow a common mapping are in several
   * ones, each with addresses for all experts. Undefined if there are too many, or if a part has a fraction of an expert.
   */
  mapExperts(
    runs: readonly FileRun[],
    experts: number,
  ): ExpertSpans | undefined {
    const size = sizeOf(runs);
    const each = size / experts;
    const { pageBytes } = this.#runtime;
    const skews: number[] = [];
    let at = 0;
    for (const { offset, bytes } of runs) {
      if (bytes % each !== 0) return undefined;
      skews.push(((offset - at) % pageBytes + pageBytes) % pageBytes);
      at += bytes;
    }
    const different = [...new Set(skews)];
    if (different.length > Math.min(MAX_MAPPINGS, size / MIN_MAPPED)) {
      return undefined;
    }
    const mappings = new Map<number, HostSpan>();
    const undo = () => mappings.forEach((span) => this.release(span));
    for (const skew of different) {
      const mapping = this.map(
        withHoles(runs, (_, i) => skews[i] === skew),
      );
      if (!mapping) return void undo();
      mappings.set(skew, mapping);
    }
    const bases = runs.flatMap(({ bytes }, i) =>
      new Array<number>(bytes / each).fill(mappings.get(skews[i]!)!.address)
    );
    const weight = this.#runtime.place(
      this.#pool,
      BigUint64Array.from(bases, BigInt),
    );
    if (weight < 0) return void undo();
    this.#placed = true;
    return { weight, bases, size, mappings: [...mappings.values()] };
  }

  /** Throws DataError if a mapped file was truncated, or if experts could not be read. */
  checkFiles(): void {
    const hasGroups = this.#placed || this.#streamed.size > 0;
    if (hasGroups && this.#runtime.streams(this.#pool).failed) {
      throw new DataError(
        "Cannot read experts: a file of weights has become shorter, or its disk failed. Get the file again",
      );
    }
    const lost = this.#maps.size > 0 ? this.#runtime.lost() : 0;
    if (lost === 0) return;
    for (let [at, runs] of this.#maps) {
      for (const { name, bytes } of runs) {
        if (lost >= at && lost < at + bytes) throw fileLost(name);
        at += bytes;
      }
    }
    throw fileLost();
  }

  /**
   * Experts, each a part of a file, as memory that is loaded on demand. Undefined if the system does not support it.
   */
  stream(
    experts: readonly FileRun[],
  ): HostSpan & { readonly weight: number } | undefined {
    const found = this.#runtime.stream(this.#pool, wordsOf(experts));
    if (!found) return undefined;
    this.#streamed.set(found.address, found.weight);
    return { ...found, size: sizeOf(experts) };
  }

  /** Frees memory. Does nothing after the heap is closed. */
  release({ address, size }: HostSpan): void {
    const weight = this.#streamed.get(address);
    if (weight !== undefined) {
      this.#streamed.delete(address);
      return this.#runtime.unstream(this.#pool, weight);
    }
    const isMapped = this.#maps.delete(address);
    if (!isMapped && !this.#sizes.delete(address)) return;
    for (const at of this.#views.keys()) {
      if (at >= address && at < address + size) this.#views.delete(at);
    }
    if (isMapped) return this.#runtime.unmap(address, size);
    this.#runtime.free(address, size);
    this.#used -= size;
  }

  /** Frees everything. Views must not be used afterwards. */
  close(): void {
    for (const [address, size] of this.#sizes) this.release({ address, size });
    for (const [address, runs] of this.#maps) {
      this.release({ address, size: sizeOf(runs) });
    }
    for (const address of this.#streamed.keys()) {
      this.release({ address, size: 0 });
    }
  }

  /** A view of an allocation. */
  view(address: number, bytes: number): Uint8Array {
    if (bytes === 0) return new Uint8Array();
    const known = this.#views.get(address);
    if (known && bytes <= known.length) return known.subarray(0, bytes);
    const view = new Uint8Array(this.#runtime.view(address, bytes));
    if (bytes <= SMALL_VIEW) this.#views.set(address, view);
    return view;
  }
}

/** Parts of files, with a hole in place of consecutive ones that are not `included`. */
function withHoles(
  runs: readonly FileRun[],
  included: (run: FileRun, i: number) => boolean,
): FileRun[] {
  const found: FileRun[] = [];
  for (const [i, run] of runs.entries()) {
    const last = found.at(-1);
    if (included(run, i)) found.push(run);
    else if (last?.descriptor === HOLE) {
      found[found.length - 1] = { ...last, bytes: last.bytes + run.bytes };
    } else found.push({ ...run, descriptor: HOLE });
  }
  return found;
}

function sizeOf(runs: readonly FileRun[]): number {
  return sum(runs.map(({ bytes }) => bytes));
}

function fileLost(name = "a file of weights"): DataError {
  return new DataError(
    `Cannot resume '${name}': it became shorter during the run, or cannot be read. Copy it again`,
  );
}

/** Parts of files in the runtime's format. */
function wordsOf(runs: readonly FileRun[]): BigUint64Array {
  return BigUint64Array.from(
    runs.flatMap(({ descriptor, offset, bytes }) =>
      [descriptor, offset, bytes].map(BigInt)
    ),
  );
}
