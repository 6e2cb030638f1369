/**
 * Bindings of a kernel that determine whether invocations reach a barrier: WGSL requires them to be read-only storage.
 */

import { cachedWith } from "../bounded_cache.ts";
import { divergentBarriers } from "../kernel/barrier_control.ts";
import { exactJson } from "../kernel/exact_json.ts";
import { isReadOnly, type Kernel, type Stmt } from "../kernel/tree.ts";
import { bodiesOf, someStatement } from "../kernel/walk.ts";

/** Results by the body of a kernel: plans compiled one after the other share most bodies. */
const found = new WeakMap<Kernel["body"], Map<string, string[]>>();

/** Those of some bindings that are read-only and whose elements determine a loop or a branch around a barrier. */
export function barrierBindings(
  kernel: Kernel,
  among: (name: string) => boolean,
): string[] {
  const names = kernel.bindings.filter(isReadOnly).map(({ name }) => name)
    .filter(among);
  if (names.length === 0 || !kernel.body.some(surroundsBarrier)) return [];
  return cachedWith(found, kernel.body, {
    key: exactJson([names, kernel.bindings, kernel.workgroupSize]),
    // Most kernels have none, which one check detects.
    create: () =>
      diverges(kernel, names)
        ? names.filter((name) => diverges(kernel, [name]))
        : [],
  });
}

function surroundsBarrier(stmt: Stmt): boolean {
  return bodiesOf(stmt).some((body) =>
    someStatement(body, ({ op }) => op === "barrier")
  );
}

/** Whether some invocation may not reach a barrier, by WGSL's analysis, if these bindings are writable. */
function diverges(kernel: Kernel, writable: readonly string[]): boolean {
  const bindings = kernel.bindings.map((binding) =>
    writable.includes(binding.name)
      ? { ...binding, writable: true as const }
      : binding
  );
  return divergentBarriers({ ...kernel, bindings }).size > 0;
}
