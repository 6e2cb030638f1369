/**
 * Writable: declares bindings as writable storage if their buffers share an allocation with one that the same launch
 * writes. Postcondition: no launch binds an allocation both as read-only and as writable storage.
 */

import type { Kernel } from "../../spec/kernel/tree.ts";
import type { PlanBuffer, Step } from "../../spec/plan/plan.ts";

/** A kernel and the allocation of each of its bindings. */
interface Use {
  readonly kernel: Kernel;
  readonly allocations: readonly number[];
}

/** The kernels of `steps`, declared for the allocations that their launches bind. */
export function declareWritable(
  kernels: ReadonlyMap<string, Kernel>,
  steps: readonly Step[],
  buffers: { readonly [name: string]: PlanBuffer },
): Map<string, Kernel> {
  const uses = differentUses(kernels, steps, buffers);
  const writable = new Map<string, Set<string>>();
  for (const { name } of kernels.values()) writable.set(name, new Set());
  // A binding that is writable for one launch is writable for all launches of its kernel, which may make further
  // bindings writable.
  for (let again = true; again;) {
    again = false;
    for (const use of uses) {
      if (addWritable(use, writable.get(use.kernel.name)!)) again = true;
    }
  }
  return new Map(
    [...kernels].map(([name, kernel]) => [
      name,
      {
        ...kernel,
        bindings: kernel.bindings.map((binding) =>
          writable.get(name)!.has(binding.name)
            ? { ...binding, writable: true }
            : binding
        ),
      },
    ]),
  );
}

function differentUses(
  kernels: ReadonlyMap<string, Kernel>,
  steps: readonly Step[],
  buffers: { readonly [name: string]: PlanBuffer },
): Use[] {
  const uses = new Map<string, Use>();
  for (const step of steps) {
    if (step.op !== "launch") continue;
    const kernel = kernels.get(step.kernel)!;
    const allocations = kernel.bindings.map(({ name }) =>
      buffers[step.bindings[name]!]!.allocation
    );
    uses.set(`${step.kernel} ${allocations.join()}`, { kernel, allocations });
  }
  return [...uses.values()];
}

/** Adds the bindings that one use of their kernel makes writable. Returns whether there are any. */
function addWritable(
  { kernel, allocations }: Use,
  writable: Set<string>,
): boolean {
  const before = writable.size;
  const written = new Set(
    allocations.filter((_, i) => {
      const { access, name } = kernel.bindings[i]!;
      return access !== "read" || writable.has(name);
    }),
  );
  kernel.bindings.forEach(({ access, name }, i) => {
    if (access === "read" && written.has(allocations[i]!)) writable.add(name);
  });
  return writable.size > before;
}
