/** Which bindings of a kernel decide whether invocations arrive at a barrier: WGSL wants them to be read-only storage. */

import { isReadOnly, type Kernel, type Stmt } from "../kernel/tree.ts";
import { readTree } from "../kernel/verify_tree.ts";
import { bodiesOf, someStatement } from "../kernel/walk.ts";

/** Of some bindings, those that are read-only and whose elements decide on a loop or a branch around a barrier. */
export function barrierBindings(
  kernel: Kernel,
  among: (name: string) => boolean,
): string[] {
  const names = kernel.bindings.filter(isReadOnly).map(({ name }) => name)
    .filter(among);
  if (names.length === 0 || !kernel.body.some(surroundsBarrier)) return [];
  // Of most kernels, none: one look finds that out.
  if (!diverges(kernel, names)) return [];
  return names.filter((name) => diverges(kernel, [name]));
}

function surroundsBarrier(stmt: Stmt): boolean {
  return bodiesOf(stmt).some((body) =>
    someStatement(body, ({ op }) => op === "barrier")
  );
}

/** Whether a barrier is not reached by every invocation, as far as WGSL can tell, where these bindings are writable. */
function diverges(kernel: Kernel, writable: readonly string[]): boolean {
  const bindings = kernel.bindings.map((binding) =>
    writable.includes(binding.name)
      ? { ...binding, writable: true as const }
      : binding
  );
  return readTree({ ...kernel, bindings }).divergent.size > 0;
}
