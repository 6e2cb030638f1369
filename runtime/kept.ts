/** What a plan keeps between runs, parameters and states, as tensors that a caller can read and write. */

import { DataError } from "../spec/errors.ts";
import type { Plan, Port } from "../spec/plan.ts";
import type { HostTensor } from "./host_tensor.ts";
import { dealAxes, type RunAxes } from "./shard.ts";

/** The port of a weight or state, in the axes of its buffer. */
export function keptPort(plan: Plan, name: string): Port {
  const buffer = Object.hasOwn(plan.buffers, name)
    ? plan.buffers[name]
    : undefined;
  const kept = buffer?.kind === "weight" || buffer?.kind === "state";
  if (!kept || buffer.dtype !== "f32") {
    throw new DataError(
      `Cannot reach '${name}': it is no weight or state of the plan that is stored as f32. See the plan for their names`,
    );
  }
  const axes = buffer.axes.map(({ axis }) => axis);
  return { buffer: name, dtype: "f32", axes };
}

/** Refuse a tensor of another shape. */
export function checkKept(
  name: string,
  { dtype, shape, data }: HostTensor,
  wanted: readonly number[],
): void {
  const size = wanted.reduce((n, length) => n * length, 1);
  if (
    dtype === "f32" && shape.join() === wanted.join() && data.length === size
  ) return;
  throw new DataError(
    `Cannot set '${name}' to ${dtype} [${shape.join(", ")}]: it is f32 [${
      wanted.join(", ")
    }]. Give it so`,
  );
}

/** How fixed axes lie on the ranks; run-time axes have no length. */
export function keptAxes(plan: Plan): RunAxes {
  return dealAxes(plan, new Map(), {}, new Map());
}
