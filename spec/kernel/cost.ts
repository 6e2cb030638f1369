/** What a kernel costs, read off its tree alone. */

import { sum } from "../sum.ts";
import type { Kernel } from "./tree.ts";
import { kernelWork } from "./work.ts";

/** Cost of one invocation that takes the dearer of two branches, and every optional one. */
export interface KernelCost {
  /** Multiply-adds: `fma` nodes. */
  readonly multiplyAdds: number;
  /** Bytes loaded from and stored to bindings. */
  readonly loadBytes: number;
  readonly storeBytes: number;
  /** False where neither a loop's bounds nor how many iterations at most are known; its body is then counted once. */
  readonly exact: boolean;
}

/** Count a kernel's work per invocation. */
export function kernelCost(kernel: Kernel): KernelCost {
  const { multiplyAdds, loads, stores, exact } = kernelWork(kernel);
  return {
    multiplyAdds,
    loadBytes: sum(loads),
    storeBytes: sum(stores),
    exact,
  };
}
