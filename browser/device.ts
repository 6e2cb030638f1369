/** What computes in a page: the visitor's GPU, or the processor by WebAssembly. */

import { MAX_THREADS } from "../runtime/cpu/control.ts";
import { CpuPool } from "../runtime/cpu/pool.ts";
import type { Device } from "../runtime/device.ts";
import { adapterOf } from "../runtime/gpu.ts";
import { createGpuDevice } from "../runtime/gpu_device.ts";
import { HostDevice } from "../runtime/host_device.ts";
import { MachineError } from "../spec/errors.ts";
import type { Plan } from "../spec/plan/plan.ts";
import { startWebWorker } from "./web_worker.ts";

/** `gpu` is WebGPU, `cpu` WebAssembly; `auto` takes a hardware GPU where there is one. */
export type BrowserDevice = "auto" | "gpu" | "cpu";

/** What browsers know of themselves; Node's types do not have it. */
const page = globalThis as unknown as {
  /** Whether memory can be shared with workers. */
  readonly crossOriginIsolated?: boolean;
  readonly navigator: {
    readonly gpu?: GPU;
    readonly hardwareConcurrency: number;
  };
};

/**
 * Open a device for all ranks of a plan. WebAssembly computes in as many workers as there are cores if the page is isolated
 * from other origins (served with `Cross-Origin-Opener-Policy: same-origin` and `Cross-Origin-Embedder-Policy:
 * require-corp`), as only such pages share memory with workers; else on the page's own thread, which waits meanwhile.
 * Errors: MachineError where there is no such device, or it cannot run the plan.
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
  return new HostDevice(pool, { ownsPool: true });
}
