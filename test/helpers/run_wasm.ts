/** Runs one kernel as WebAssembly on this thread, without a device. */

import {
  GUARD_BYTES,
  printKernels,
  RECORD_BYTES,
} from "../../runtime/cpu/print.ts";
import { webAssembly } from "../../runtime/cpu/web_assembly.ts";
import type { Kernel } from "../../spec/kernel/tree.ts";

/** Prints, instantiates and runs a kernel. Updates its bindings in place. */
export function runWasm(
  kernel: Kernel,
  bindings: { readonly [name: string]: Uint32Array },
  workgroups: readonly [number, number, number],
  options: { readonly lanes?: 1 } = {},
): void {
  const { bytes, scratch } = printKernels([kernel], options);
  const memory = new webAssembly.Memory({
    initial: 64,
    maximum: 65536,
    shared: true,
  });
  const instance = new webAssembly.Instance(new webAssembly.Module(bytes), {
    env: { memory },
  });
  const words = new Uint32Array(memory.buffer);
  const record = 1024;
  let next = 65536 + Math.ceil(scratch[0]! / 16) * 16;
  const at = kernel.bindings.map((binding, i) => {
    next += GUARD_BYTES;
    const data = bindings[binding.name]!;
    const address = next;
    words.set(data, address / 4);
    words[(record + RECORD_BYTES) / 4 + 2 * i] = address;
    words[(record + RECORD_BYTES) / 4 + 2 * i + 1] = data.length;
    next += Math.ceil(data.byteLength / 16) * 16 + GUARD_BYTES;
    return { address, data };
  });
  const [x, y, z] = workgroups;
  words[record / 4 + 2] = x;
  words[record / 4 + 3] = y;
  instance.exports.run0!(record, 0, x * y * z, 65536);
  for (const { address, data } of at) {
    data.set(words.subarray(address / 4, address / 4 + data.length));
  }
}
