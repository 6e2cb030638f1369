/**
 * A process that runs plans: `fresh_runs.ts FILE`, of a JSON file with `FreshRuns`. Each has threads and memory of its
 * own. Prints a digest of all that each gives and leaves, one a line.
 */

import { readFile } from "node:fs/promises";
import process from "node:process";
import { createCpuDevice } from "../../runtime/cpu/mod.ts";
import type { Plan } from "../../spec/plan/plan.ts";
import { type Call, digestOf, randomWeights, runOn } from "./runs.ts";

/** Legal plans, to be run with random weights. */
export interface FreshRuns {
  readonly threads: number;
  readonly plans: readonly {
    readonly plan: Plan;
    readonly calls: readonly Call[];
  }[];
}

const { threads, plans } = JSON.parse(
  await readFile(process.argv[2]!, "utf8"),
) as FreshRuns;
for (const { plan, calls } of plans) {
  const device = await createCpuDevice({ threads });
  const tensors = randomWeights(plan);
  console.log(digestOf(await runOn(device, { plan, tensors, calls })));
  device.destroy();
}
