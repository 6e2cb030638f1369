/** Runs one kernel on a device. */

import { HostDevice } from "../../runtime/host/device.ts";
import type { Device } from "../../runtime/mod.ts";
import type { NativePool } from "../../runtime/native/mod.ts";
import type { Kernel } from "../../spec/kernel/tree.ts";

/** Bindings and workgroups of a launch. Bindings are updated in place. */
export interface KernelRun {
  readonly bindings: { readonly [name: string]: Uint32Array };
  readonly groups: readonly [number, number, number];
  /** Allows fused multiply-adds, as `fast` numerics do. Default: false. */
  readonly fused?: boolean;
}

/** Compiles and runs a kernel on a native pool. */
export async function runNative(
  pool: NativePool,
  kernel: Kernel,
  on: KernelRun,
): Promise<void> {
  const device = new HostDevice(pool);
  await runOnDevice(device, kernel, on);
  device.destroy();
}

/** Compiles and runs a kernel. Kernels of one device need distinct names. */
export async function runOnDevice(
  device: Device,
  kernel: Kernel,
  { bindings, groups, fused = false }: KernelRun,
): Promise<void> {
  await device.prepare({ [kernel.name]: { tree: kernel, fused } });
  const buffers = kernel.bindings.map(({ name }) => {
    const words = bindings[name]!;
    const buffer = device.createBuffer(words.byteLength, name);
    device.write(buffer, 0, new Uint8Array(words.slice().buffer));
    return buffer;
  });
  device.launch(kernel.name, buffers, groups);
  for (const [i, { name, access }] of kernel.bindings.entries()) {
    if (access === "read") continue;
    const bytes = await device.read(buffers[i]!, 0, buffers[i]!.bytes);
    bindings[name]!.set(new Uint32Array(bytes.buffer));
  }
}
