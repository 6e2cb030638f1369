/** Checks that devices can execute a plan, and errors of their kernels. */

import { MachineError } from "../spec/errors.ts";
import type { Plan, Program } from "../spec/plan/plan.ts";
import { DeadlineError, type Device } from "./device.ts";

/** Checks the plan's limits against the devices. A GPU was opened with the limits of the plan. */
export function checkLimits(plan: Plan, devices: readonly Device[]): void {
  for (const { name, limits } of devices) {
    for (const [limit, value] of Object.entries(plan.requiredLimits)) {
      const has = limits[limit];
      if (has === undefined || value <= has) continue;
      throw new MachineError(
        `Cannot run the plan on '${name}': it needs ${limit} = ${value}, and the device has ${has}. Compile the model for this device`,
      );
    }
  }
}

/** Checks the number of devices, and that all are of one kind. */
export function checkDevices(devices: readonly Device[], ranks: number): void {
  if (devices.length !== ranks) {
    throw new MachineError(
      `Cannot run the plan on ${devices.length} ranks: it is made for ${ranks}. Give one device for each rank`,
    );
  }
  const [first] = devices;
  const other = devices.find((device) =>
    device.kind !== first!.kind || device.name !== first!.name
  );
  if (other) {
    throw new MachineError(
      `Cannot run the plan on devices '${
        first!.name
      }' and '${other.name}': different kinds of device compute different bits. Use one kind for all ranks`,
    );
  }
}

/** Adds the step of a kernel that took too long, or its candidates, to the error. */
export function inStep(
  { kernels, deadlineMs }: DeadlineError,
  { name, steps }: Program,
): DeadlineError {
  const launches = steps.flatMap((step, i) =>
    step.op === "launch" && kernels.includes(step.kernel)
      ? [`${name}[${i}]`]
      : []
  );
  const at = launches.length === 0
    ? ` of program '${name}'`
    : ` in ${launches.slice(0, 4).join(" or ")}${
      launches.length > 4 ? " …" : ""
    }`;
  return new DeadlineError(kernels, deadlineMs, at);
}
