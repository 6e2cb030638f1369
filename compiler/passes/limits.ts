/** What a plan needs of a device, and whether that is allowed. */

import { boundOf } from "../../spec/bytes.ts";
import { STORED_BYTES } from "../../spec/dtype.ts";
import { MachineError } from "../../spec/errors.ts";
import { GUARANTEED_LIMITS, type LimitName } from "../../spec/limits.ts";
import { type Allocation, maxOverRanks, type Plan } from "../../spec/plan.ts";

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
    maxComputeWorkgroupStorageSize: max(
      kernels.map(({ shared }) =>
        shared.reduce(
          (n, array) => n + array.length * STORED_BYTES[array.type],
          0,
        )
      ),
    ),
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

/** Refuse a plan that needs more than `limits` give. Throws MachineError that names what is too large. */
export function checkLimits(
  plan: Plan,
  limits: { readonly [limit: string]: number },
): void {
  for (const [name, need] of Object.entries(plan.requiredLimits)) {
    const allowed = limits[name] ?? GUARANTEED_LIMITS[name as LimitName];
    if (need <= allowed) continue;
    const what =
      name === "maxBufferSize" || name === "maxStorageBufferBindingSize"
        ? largestBuffer(plan)
        : "a kernel";
    throw new MachineError(
      `Cannot fit the plan: ${what} needs ${name} = ${need}, and ${allowed} is allowed. Use more ranks or smaller bounds, or allow more by 'limits'`,
    );
  }
}

function largestBuffer(plan: Plan): string {
  let largest = "";
  let bytes = -1;
  for (const [name, buffer] of Object.entries(plan.buffers)) {
    const size = maxOverRanks(buffer.bytes);
    if (size > bytes) [largest, bytes] = [name, size];
  }
  return `buffer '${largest}'`;
}
