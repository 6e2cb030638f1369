/** What a plan needs of a device, and whether that is allowed. */

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

/** The largest need of each limit. */
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
    // A binding is a buffer, however much memory it is allocated with.
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

/** Bytes of the workgroup memory of a kernel. */
export function sharedBytes({ shared }: Pick<Kernel, "shared">): number {
  return sum(shared.map(({ length, type }) => length * STORED_BYTES[type]));
}

/** Refuse a plan that needs more than `limits` give. Throws MachineError that names everything that is too large. */
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
