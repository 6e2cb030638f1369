/** Counts the work of a step on one rank, without exchanges. */

import { launchContext, openLaunchMeter } from "./launches.ts";
import type { Plan } from "../../../spec/plan/plan.ts";
import type { Workload } from "./workload.ts";

/** The work of all launches of a step. */
export interface StepWork {
  readonly launches: number;
  /** Workgroups of the largest launch. */
  readonly workgroups: number;
  readonly multiplyAdds: number;
  readonly operations: number;
  /** Bytes of weights that are read, including those of all experts. */
  readonly weightBytes: number;
  readonly stateBytes: number;
}

/** Counts the launches of a step on rank 0. */
export function countStep(plan: Plan, workload: Workload): StepWork {
  const context = launchContext(plan, workload);
  const meter = openLaunchMeter(context);
  const total = {
    launches: 0,
    workgroups: 0,
    multiplyAdds: 0,
    operations: 0,
    weightBytes: 0,
    stateBytes: 0,
  };
  for (const step of context.program.steps) {
    if (step.op !== "launch") continue;
    const counted = meter.launch(step, { rank: 0, fullness: "max" });
    if (counted === undefined) continue;
    const { work, weights, states } = counted;
    total.launches++;
    total.workgroups = Math.max(total.workgroups, work.workgroups);
    total.multiplyAdds += work.multiplyAdds;
    total.operations += work.operations;
    total.weightBytes += weights;
    total.stateBytes += states;
  }
  return total;
}
