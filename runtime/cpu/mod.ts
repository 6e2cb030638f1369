/**
 * The CPU as a device: kernels as WebAssembly SIMD on worker threads, nothing to install.
 *
 * @example
 * ```ts
 * const device = await createCpuDevice({ threads: 2 });
 * ```
 */

import { availableParallelism } from "node:os";
import { invariant, MachineError } from "../../spec/errors.ts";
import type { PlanKernel } from "../../spec/plan.ts";
import type { Device, DeviceBuffer, LaunchTiming, Staging } from "../device.ts";
import { MAX_THREADS } from "./control.ts";
import { HEAP_BYTES, type Span } from "./heap.ts";
import { CpuPool, type PoolKernel } from "./pool.ts";

export { SHARE_FROM_MS } from "./control.ts";
export { CpuPool } from "./pool.ts";
export { type PrintedModule, printKernels } from "./print.ts";

/** Options of `createCpuDevice`. */
export interface CpuDeviceOptions {
  /** Worker threads; default: as many as the machine runs at once. */
  readonly threads?: number;
  /** A pool that several devices share; `threads` is then the pool's, and the caller closes it. */
  readonly pool?: CpuPool;
  /** Keep when each launch ran, for `timings`. */
  readonly timestamps?: boolean;
}

/** What a CPU device can do; `memory` is the bytes of all buffers of its pool together. */
export const CPU_LIMITS = {
  maxBufferSize: HEAP_BYTES,
  maxStorageBufferBindingSize: HEAP_BYTES,
  maxStorageBuffersPerShaderStage: 64,
  maxComputeWorkgroupStorageSize: 1 << 20,
  maxComputeInvocationsPerWorkgroup: 1024,
  maxComputeWorkgroupSizeX: 1024,
  maxComputeWorkgroupsPerDimension: 65535,
  memory: HEAP_BYTES,
} as const satisfies { readonly [limit: string]: number };

/** Open the CPU as a device. Devices that share a pool run their launches one after another, on the same threads. */
export async function createCpuDevice(
  options: CpuDeviceOptions = {},
): Promise<Device> {
  const threads = options.threads ??
    Math.min(availableParallelism(), MAX_THREADS);
  const pool = options.pool ?? await CpuPool.open(threads);
  return new CpuDevice(pool, options);
}

/** A range of the heap of a CPU device. */
class CpuBuffer implements DeviceBuffer {
  readonly bytes: number;
  readonly address: number;
  constructor(bytes: number, address: number) {
    this.bytes = bytes;
    this.address = address;
  }
}

class CpuDevice implements Device {
  readonly kind = "cpu";
  readonly name: string;
  readonly limits = CPU_LIMITS;
  readonly #pool: CpuPool;
  readonly #ownsPool: boolean;
  readonly #kernels = new Map<string, PoolKernel>();
  #spans: Span[] = [];
  /** What frozen lists of buffers bind. */
  readonly #bindings = new WeakMap<readonly DeviceBuffer[], Int32Array>();
  #destroyed = false;

  readonly timings?: () => Promise<LaunchTiming[]>;
  #times: LaunchTiming[] | undefined;

  constructor(pool: CpuPool, options: CpuDeviceOptions) {
    this.#pool = pool;
    this.#ownsPool = options.pool === undefined;
    if (options.timestamps) {
      this.#times = [];
      this.timings = async () => {
        await this.idle();
        const times = this.#times!;
        this.#times = [];
        return times;
      };
    }
    this.name = `CPU (WebAssembly SIMD, ${pool.threads} thread${
      pool.threads === 1 ? "" : "s"
    })`;
  }

  async prepare(
    kernels: { readonly [name: string]: PlanKernel },
    progress?: (done: number, total: number) => void,
  ): Promise<void> {
    this.#check();
    const names = Object.keys(kernels);
    const ready = await this.#pool.prepare(
      names.map((name) => kernels[name]!.tree),
    );
    names.forEach((name, i) => this.#kernels.set(name, ready[i]!));
    progress?.(names.length, names.length);
  }

  createBuffer(bytes: number, label: string): DeviceBuffer {
    this.#check();
    const span = this.#pool.heap.allocate(bytes, label);
    this.#spans.push(span);
    return new CpuBuffer(bytes, span.address);
  }

  range(buffer: DeviceBuffer, offset: number, bytes: number): DeviceBuffer {
    return new CpuBuffer(bytes, this.#address(buffer, offset, bytes));
  }

  write(buffer: DeviceBuffer, offset: number, data: Uint8Array): void {
    this.#pool.write(this.#address(buffer, offset, data.length), data);
  }

  launch(
    kernel: string,
    buffers: readonly DeviceBuffer[],
    workgroups: readonly [number, number, number],
  ): void {
    this.#check();
    const known = this.#kernels.get(kernel);
    invariant(known, `kernel '${kernel}' is not prepared`);
    let bindings = this.#bindings.get(buffers);
    if (!bindings) {
      invariant(
        buffers.length === known.bindings,
        `kernel '${kernel}' binds ${known.bindings} buffers, not ${buffers.length}`,
      );
      bindings = Int32Array.from(
        buffers.flatMap((buffer) => [
          this.#address(buffer, 0, buffer.bytes),
          Math.floor(buffer.bytes / 4),
        ]),
      );
      if (Object.isFrozen(buffers)) this.#bindings.set(buffers, bindings);
    }
    this.#pool.launch(known, bindings, workgroups, this.#times);
  }

  copy(
    from: DeviceBuffer,
    fromOffset: number,
    to: DeviceBuffer,
    toOffset: number,
    bytes: number,
  ): void {
    this.#pool.copy(
      this.#address(from, fromOffset, bytes),
      this.#address(to, toOffset, bytes),
      bytes,
    );
  }

  async read(
    buffer: DeviceBuffer,
    offset: number,
    bytes: number,
  ): Promise<Uint8Array> {
    const address = this.#address(buffer, offset, bytes);
    await this.#pool.settle();
    return Uint8Array.from(this.#pool.heap.view(address, bytes));
  }

  /** The memory itself, whichever way: once what was recorded is done, nothing stands between it and the host. */
  createStaging(): Staging {
    return {
      bytes: 0,
      open: async (buffer, spans) => {
        await this.#pool.settle();
        return spans.map(({ offset, bytes }) =>
          this.#pool.heap.view(this.#address(buffer, offset, bytes), bytes)
        );
      },
      close: () => {},
    };
  }

  submit(): void {
    this.#check();
    this.#pool.submit();
  }

  async idle(): Promise<void> {
    this.#check();
    await this.#pool.settle();
  }

  destroy(): void {
    if (this.#destroyed) return;
    this.#destroyed = true;
    const spans = this.#spans;
    this.#spans = [];
    if (this.#ownsPool) {
      void this.#pool.close();
      return;
    }
    // Launches recorded earlier may still use the memory. A pool that failed gives nothing back.
    this.#pool.settle().then(
      () => spans.forEach((span) => this.#pool.heap.release(span)),
      () => {},
    );
  }

  #check(): void {
    if (this.#destroyed) {
      throw new MachineError(
        "Cannot use the CPU device: it was destroyed. Open another",
      );
    }
  }

  #address(buffer: DeviceBuffer, offset: number, bytes: number): number {
    this.#check();
    invariant(buffer instanceof CpuBuffer, "a buffer of another device");
    invariant(
      offset >= 0 && bytes >= 0 && offset + bytes <= buffer.bytes,
      `bytes ${offset} to ${offset + bytes} of a buffer of ${buffer.bytes}`,
    );
    return buffer.address + offset;
  }
}
