/** Static cost of a kernel tree. */

import { sum } from "../sum.ts";
import type { Kernel } from "./tree.ts";
import { kernelWork } from "./work.ts";

/** Cost of one invocation that takes the more expensive of two branches, and every optional one. */
export interface KernelCost {
  /** Multiply-adds: `fma` nodes. */
  readonly multiplyAdds: number;
  /** Bytes loaded from and stored to bindings. */
  readonly loadBytes: number;
  readonly storeBytes: number;
  /**
   * False if neither the bounds of a loop nor its maximum number of iterations are known; its body is then counted
   * once.
   */
  readonly exact: boolean;
}

/** Counts a kernel's work per invocation. */
export function kernelCost(kernel: Kernel): KernelCost {
  const { multiplyAdds, loads, stores, exact } = kernelWork(kernel);
  return {
    multiplyAdds,
    loadBytes: sum(loads),
    storeBytes: sum(stores),
    exact,
  };
}
