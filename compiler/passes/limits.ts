/** Device limits that a plan requires, and their check. */

import { boundOf } from "../../spec/plan/bytes.ts";
import { STORED_BYTES } from "../../spec/dtype.ts";
import { MachineError } from "../../spec/errors.ts";
import type { Kernel } from "../../spec/kernel/tree.ts";
import type { LimitName } from "../../spec/limits.ts";
import {
  type Allocation,
  maxOverRanks,
  type Plan,
} from "../../spec/plan/plan.ts";
import { limitProblems } from "../../spec/problems.ts";
import { sum } from "../../spec/sum.ts";

/** The largest requirement of each limit. */
export function requiredLimits(plan: Plan): { [L in LimitName]: number } {
  const kernels = Object.values(plan.kernels).map(({ tree }) => tree);
  const max = (values: readonly number[]) =>
    values.reduce((a, b) => Math.max(a, b), 0);
  const grids = plan.programs.flatMap(({ steps }) =>
    steps.flatMap((step) => step.op === "launch" ? step.workgroups : [])
  );
  const longest = (all: readonly Pick<Allocation, "bytes">[]) =>
    max(all.map(({ bytes }) => maxOverRanks(bytes)));
  return {
    maxBufferSize: longest(plan.allocations),
    // A binding is one buffer, independent of its allocation.
    maxStorageBufferBindingSize: longest(Object.values(plan.buffers)),
    maxStorageBuffersPerShaderStage: max(
      kernels.map(({ bindings }) => bindings.length),
    ),
    maxComputeWorkgroupStorageSize: max(kernels.map(sharedBytes)),
    maxComputeInvocationsPerWorkgroup: max(
      kernels.map(({ workgroupSize }) => workgroupSize),
    ),
    maxComputeWorkgroupSizeX: max(
      kernels.map(({ workgroupSize }) => workgroupSize),
    ),
    maxComputeWorkgroupsPerDimension: max(
      grids.map((size) => boundOf(size, plan)),
    ),
  };
}

/** Bytes of workgroup memory of a kernel. */
export function sharedBytes({ shared }: Pick<Kernel, "shared">): number {
  return sum(shared.map(({ length, type }) => length * STORED_BYTES[type]));
}

/** Rejects a plan that exceeds `limits`. Throws MachineError that names every exceeded limit. */
export function checkLimits(
  plan: Plan,
  limits: { readonly [limit: string]: number },
): void {
  const problems = limitProblems(plan, limits);
  if (problems.length === 0) return;
  throw new MachineError(
    `Cannot fit the plan: ${
      problems.map(({ what }) => what).join("; ")
    }. Use more ranks or smaller bounds, or allow more by 'limits'`,
  );
}
