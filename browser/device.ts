/** Compute devices of a page: the visitor's GPU, or the processor through WebAssembly. */

import { MAX_THREADS } from "../runtime/cpu/control.ts";
import { CpuPool } from "../runtime/cpu/pool.ts";
import type { Device } from "../runtime/device.ts";
import { adapterOf } from "../runtime/gpu/gpu.ts";
import { createGpuDevice } from "../runtime/gpu/device.ts";
import { HostDevice } from "../runtime/host/device.ts";
import { MachineError } from "../spec/errors.ts";
import type { Plan } from "../spec/plan/plan.ts";
import { startWebWorker } from "./web_worker.ts";

/** `gpu` is WebGPU and `cpu` is WebAssembly. `auto` prefers a hardware GPU if there is one. */
export type BrowserDevice = "auto" | "gpu" | "cpu";

/** Browser globals that are missing in Node's types. */
const page = globalThis as unknown as {
  /** Whether memory can be shared with workers. */
  readonly crossOriginIsolated?: boolean;
  readonly navigator: {
    readonly gpu?: GPU;
    readonly hardwareConcurrency: number;
  };
};

/**
 * Opens a device for all ranks of a plan.
 *
 * In a cross-origin isolated page, WebAssembly computes in one worker per core. Such a page is served with
 * `Cross-Origin-Opener-Policy: same-origin` and `Cross-Origin-Embedder-Policy: require-corp`; only then can it share
 * memory with workers. In other pages, WebAssembly computes on the page's own thread and blocks it. Errors:
 * MachineError if there is no such device, or if it cannot run the plan.
 */
export async function openDevice(
  plan: Plan,
  kind: BrowserDevice = "auto",
): Promise<Device> {
  const { gpu, hardwareConcurrency } = page.navigator;
  const adapter = kind === "cpu" ? undefined : gpu && await adapterOf(gpu);
  if (kind === "gpu" && !adapter) {
    throw new MachineError(
      "Cannot use WebGPU: the browser has no adapter. Use the processor, or a browser with WebGPU",
    );
  }
  if (adapter && (kind === "gpu" || adapter.type === "hardware")) {
    return await createGpuDevice(adapter, {
      limits: plan.requiredLimits,
      features: plan.requiredFeatures,
    });
  }
  const pool = page.crossOriginIsolated
    ? await CpuPool.open(
      Math.min(hardwareConcurrency, MAX_THREADS),
      startWebWorker,
    )
    : await CpuPool.open(0, undefined);
  return new HostDevice(pool, { closesPool: true });
}
