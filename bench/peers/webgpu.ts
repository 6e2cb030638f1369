/** WebGPU as browsers offer it, for peers that are written for them. */

import { create, globals } from "webgpu";

/** The object that `navigator.gpu` is; it must never be collected. */
let offered: GPU | undefined;

/** Put `navigator.gpu` and its constants in place; the adapter is the one of that name. */
export function offerWebGpu(adapter: string): Promise<void> {
  if (offered === undefined) {
    Object.assign(globalThis, globals);
    offered = create([`adapter=${adapter}`]);
    Object.defineProperty(globalThis, "navigator", {
      value: { gpu: offered, userAgent: "node", platform: "linux" },
      configurable: true,
    });
  }
  return Promise.resolve();
}
