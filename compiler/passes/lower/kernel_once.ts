/** Kernels of equal expressions, such as those of equal layers, are built once. */

import { cachedIn } from "../../../spec/bounded_cache.ts";
import { invariant } from "../../../spec/errors.ts";
import type { Binding, Kernel } from "../../../spec/kernel/tree.ts";
import type { Node } from "../../graph/graph.ts";
import type { Storage } from "./context.ts";
import { expressionKey } from "./expression_key.ts";
import type { KernelScope } from "./scope.ts";

/** A kernel, and the buffers of its bindings by their indices in its key. */
interface Made {
  readonly kernel: Kernel;
  readonly bound: readonly (readonly [buffer: number, Binding])[];
}

/** Recent kernels by their keys. */
const made = new Map<string, Made>();

/** Maximum number of these kernels. */
const MAX_MADE = 1024;

/**
 * The kernel that computes `nodes`, in order, and stores the last in `storage`. `make` builds it in `scope`, unless an
 * equal one is known: then only its buffers are bound.
 */
export function kernelOnce(
  scope: KernelScope,
  nodes: readonly Node[],
  { storage, make }: {
    readonly storage: Storage;
    readonly make: () => Kernel;
  },
): Kernel {
  const key = expressionKey(scope.lowering, nodes, storage);
  if (!key) return make();
  const { kernel, bound } = cachedIn(made, key.text, {
    max: MAX_MADE,
    create: (): Made => {
      const kernel = make();
      const bound = scope.bound.map(([buffer, binding]) => {
        const at = key.buffers.indexOf(buffer);
        invariant(at >= 0, `the key of a kernel has its buffer '${buffer}'`);
        return [at, binding] as const;
      });
      return { kernel, bound };
    },
  });
  for (const [buffer, binding] of bound) {
    scope.bind(key.buffers[buffer]!, binding);
  }
  return kernel;
}
