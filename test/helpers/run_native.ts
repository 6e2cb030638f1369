/** Run one kernel compiled as C, on a native pool. */

import { HostDevice } from "../../runtime/host_device.ts";
import type { NativePool } from "../../runtime/native/mod.ts";
import type { Kernel } from "../../spec/kernel/tree.ts";

/** Compile and run a kernel over its bindings, in place. */
export async function runNative(
  pool: NativePool,
  kernel: Kernel,
  on: {
    readonly bindings: { readonly [name: string]: Uint32Array };
    readonly groups: readonly [number, number, number];
  },
): Promise<void> {
  const device = new HostDevice(pool);
  await device.prepare({ kernel: { tree: kernel } });
  const buffers = kernel.bindings.map(({ name }) => {
    const words = on.bindings[name]!;
    const buffer = device.createBuffer(words.byteLength, name);
    device.write(buffer, 0, new Uint8Array(words.slice().buffer));
    return buffer;
  });
  device.launch("kernel", buffers, on.groups);
  for (const [i, { name }] of kernel.bindings.entries()) {
    const bytes = await device.read(buffers[i]!, 0, buffers[i]!.bytes);
    on.bindings[name]!.set(new Uint32Array(bytes.buffer));
  }
  device.destroy();
}
