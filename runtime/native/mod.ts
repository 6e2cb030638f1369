/**
 * The native CPU device: kernels printed as C, compiled by the system's compiler, and run by threads on memory outside
 * of JavaScript. It computes the same bits as the WebAssembly device, faster, and requires a compiler and the package
 * `koffi`.
 *
 * @example
 * ```ts
 * const device = await createNativeDevice({ threads: 2 });
 * ```
 */

import { availableCores, MAX_NATIVE_THREADS } from "../available_cores.ts";
import type { Device } from "../device.ts";
import { HostDevice } from "../host/device.ts";
import { type Compiler, findCompiler } from "./compiler.ts";
import { whyNotNative } from "./library.ts";
import { NativePool } from "./pool.ts";

export { availableMemory, SPARE } from "./available_memory.ts";
export { type Compiler, findCompiler } from "./compiler.ts";
export { whyNotNative } from "./library.ts";
export { NATIVE_LIMITS, NativePool } from "./pool.ts";
export { SHARE_FROM_NS } from "./threads.ts";
export { printKernel } from "./print.ts";
export type { CFunction } from "./objects.ts";

/** The compiler of native devices, or the reason why there is none. */
export async function nativeCompiler(): Promise<
  {
    readonly compiler?: Pick<Compiler, "command" | "version" | "lanes">;
    readonly missing?: string;
  }
> {
  const [found, missing] = [await findCompiler(), await whyNotNative()];
  if (found === undefined || missing !== undefined) {
    return { missing: missing ?? "no C compiler was found" };
  }
  const { command, version, lanes } = found;
  return { compiler: { command, version, lanes } };
}

/** Options of `createNativeDevice`. */
export interface NativeDeviceOptions {
  /** Number of threads. Default: the number of cores. */
  readonly threads?: number;
  /** A pool shared by several devices. `threads` is then that of the pool, and the caller closes it. */
  readonly pool?: NativePool;
  /** Whether launch times are recorded for `timings`. */
  readonly timestamps?: boolean;
}

/** Opens the CPU as a native device. Throws MachineError without a compiler or koffi. */
export async function createNativeDevice(
  options: NativeDeviceOptions = {},
): Promise<Device> {
  const threads = options.threads ??
    Math.min(availableCores(), MAX_NATIVE_THREADS);
  const pool = options.pool ?? await NativePool.open(threads);
  return new HostDevice(pool, {
    closesPool: options.pool === undefined,
    timestamps: options.timestamps ?? false,
  });
}
