/** Memory outside of JavaScript for the buffers of native devices. */

import { totalmem } from "node:os";
import { MachineError } from "../../spec/errors.ts";
import type { FileRun } from "../device.ts";
import type { HostSpan } from "../host_device.ts";
import type { Runtime } from "./library.ts";

/** Bytes of a view that is kept: making one takes as long as copying some thousand bytes. */
const SMALL_VIEW = 1 << 16;

/** Allocates, and gives views of what it allocated. */
export class NativeHeap {
  readonly #runtime: Runtime;
  /** Bytes that all allocations together may have. */
  readonly #limit: number;
  #used = 0;
  /** Bytes of each allocation by its address. */
  readonly #sizes = new Map<number, number>();
  /** Views of few bytes by their address, as a run asks for them again. */
  readonly #views = new Map<number, Uint8Array>();
  /** Bytes of mapped files by their address. */
  readonly #maps = new Map<number, number>();

  constructor(runtime: Runtime, limit = totalmem()) {
    this.#runtime = runtime;
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

  /** Parts of files as memory; undefined where pages do not fit them. Files are no memory of the heap. */
  map(runs: readonly FileRun[]): HostSpan | undefined {
    const address = this.#runtime.map(
      BigUint64Array.from(
        runs.flatMap(({ descriptor, offset, bytes }) =>
          [descriptor, offset, bytes].map(BigInt)
        ),
      ),
    );
    if (address === 0) return undefined;
    const size = runs.reduce((n, { bytes }) => n + bytes, 0);
    this.#maps.set(address, size);
    return { address, size };
  }

  /** Give memory back; of a heap that was closed, it has been. */
  release({ address, size }: HostSpan): void {
    const isMapped = this.#maps.delete(address);
    if (!isMapped && !this.#sizes.delete(address)) return;
    for (const at of this.#views.keys()) {
      if (at >= address && at < address + size) this.#views.delete(at);
    }
    if (isMapped) return this.#runtime.unmap(address, size);
    this.#runtime.free(address, size);
    this.#used -= size;
  }

  /** Give everything back; no view may be used any more. */
  close(): void {
    for (const [address, size] of this.#sizes) this.release({ address, size });
    for (const [address, size] of this.#maps) this.release({ address, size });
  }

  /** Bytes of an allocation. */
  view(address: number, bytes: number): Uint8Array {
    if (bytes === 0) return new Uint8Array();
    const known = this.#views.get(address);
    if (known && bytes <= known.length) return known.subarray(0, bytes);
    const view = new Uint8Array(this.#runtime.view(address, bytes));
    if (bytes <= SMALL_VIEW) this.#views.set(address, view);
    return view;
  }
}
