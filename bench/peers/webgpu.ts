/** WebGPU as in browsers, for projects that are written for them. */

import { create, globals } from "webgpu";

/** The object `navigator.gpu`. It must never be garbage-collected. */
let offered: GPU | undefined;

/** Defines `navigator.gpu` and its constants, with the adapter of a name. */
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
