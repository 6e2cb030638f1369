/**
 * The CPU device: kernels as WebAssembly SIMD on worker threads, without installation.
 *
 * @example
 * ```ts
 * const device = await createCpuDevice({ threads: 2 });
 * ```
 */

import { availableCores } from "../available_cores.ts";
import type { Device } from "../device.ts";
import { HostDevice } from "../host/device.ts";
import { MAX_THREADS } from "./control.ts";
import { ModuleCache } from "./module_cache.ts";
import { startNodeWorkers } from "./node_worker.ts";
import { CpuPool, type CpuPoolOptions } from "./pool.ts";

export { SHARE_FROM_MS } from "./control.ts";
export { CPU_LIMITS } from "./heap.ts";
export type { CpuPool } from "./pool.ts";
export { type PrintedModule, printKernels } from "./print.ts";

/** Options of `createCpuDevice`. */
export interface CpuDeviceOptions {
  /** Number of worker threads. Default: the number of cores. */
  readonly threads?: number;
  /** A pool shared by several devices. `threads` is then that of the pool, and the caller closes it. */
  readonly pool?: CpuPool;
  /** Whether launch times are recorded for `timings`. */
  readonly timestamps?: boolean;
}

/**
 * Opens a pool of worker threads of Node.js or Deno. Printed modules are cached in the user's cache folder unless
 * `store` is given.
 */
export function openCpuPool(
  threads: number,
  options?: CpuPoolOptions,
): Promise<CpuPool> {
  return CpuPool.open(threads, startNodeWorkers(threads), {
    store: new ModuleCache(),
    ...options,
  });
}

/** Opens the CPU as a device. Devices that share a pool run their launches one after another, on the same threads. */
export async function createCpuDevice(
  options: CpuDeviceOptions = {},
): Promise<Device> {
  const threads = options.threads ??
    Math.min(availableCores(), MAX_THREADS);
  const pool = options.pool ?? await openCpuPool(threads);
  return new HostDevice(pool, {
    closesPool: options.pool === undefined,
    timestamps: options.timestamps ?? false,
  });
}
