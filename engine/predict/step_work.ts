/** What a step does on one rank, exchanges left out. */

import { bindWorkgroups } from "../../runtime/run_counts.ts";
import { onRank, type Plan } from "../../spec/plan.ts";
import { KnownBuffers } from "./known.ts";
import { LaunchCounter } from "./launch.ts";
import { dealScene, type SceneOptions } from "./scene.ts";

/** The work of all launches of a step. */
export interface StepWork {
  readonly launches: number;
  /** Workgroups of the launch that has most. */
  readonly workgroups: number;
  readonly multiplyAdds: number;
  readonly operations: number;
  /** Bytes of weights that are read, those of all experts among them. */
  readonly weightBytes: number;
  readonly stateBytes: number;
}

/** Count the launches of a step on rank 0. */
export function countStep(plan: Plan, options: SceneOptions): StepWork {
  const scene = dealScene(plan, options);
  const known = new KnownBuffers(scene);
  const counter = new LaunchCounter();
  const total = {
    ...{ launches: 0, workgroups: 0, multiplyAdds: 0, operations: 0 },
    ...{ weightBytes: 0, stateBytes: 0 },
  };
  for (const step of scene.program.steps) {
    if (step.op !== "launch") continue;
    const { tree } = plan.kernels[step.kernel]!;
    const size = bindWorkgroups(step.workgroups, plan, 0)(scene.counts);
    if (size.includes(0)) continue;
    const data = tree.bindings.map(({ name }) =>
      known.of(0, step.bindings[name]!)
    );
    const work = counter.count(tree, size, data);
    total.launches++;
    total.workgroups = Math.max(total.workgroups, work.workgroups);
    total.multiplyAdds += work.multiplyAdds;
    total.operations += work.operations;
    for (const [i, { name }] of tree.bindings.entries()) {
      const { kind, bytes } = plan.buffers[step.bindings[name]!]!;
      const read = Math.min(work.loads[i]!, onRank(bytes, 0));
      if (kind === "weight") total.weightBytes += read;
      if (kind === "state") total.stateBytes += read;
    }
  }
  return total;
}
