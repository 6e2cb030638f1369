/** Weights that two sessions on the same devices share. */

import { modelAxis } from "../../spec/axis_parts.ts";
import type { Plan } from "../../spec/plan/plan.ts";

/** The weights that two plans lay out equally on each rank. They can share memory if their devices are the same. */
export function equalWeights(a: Plan, b: Plan): ReadonlySet<string> {
  if (JSON.stringify(a.mesh) !== JSON.stringify(b.mesh)) return new Set();
  return new Set(
    a.weights.map(({ buffer }) => buffer)
      .filter((name) => layoutOf(a, name) === layoutOf(b, name)),
  );
}

/** Everything that determines the bytes of a weight in memory. Undefined: the plan has no such weight. */
function layoutOf(plan: Plan, name: string): string | undefined {
  const weight = plan.weights.find(({ buffer }) => buffer === name);
  if (weight === undefined) return undefined;
  const { axes, bytes, dtype, rowStride } = plan.buffers[name]!;
  return JSON.stringify([
    weight,
    bytes,
    dtype,
    rowStride,
    axes.map(({ axis, size }) => [
      axis,
      size,
      plan.axes[axis],
      plan.axes[modelAxis(plan, axis)],
    ]),
  ]);
}
