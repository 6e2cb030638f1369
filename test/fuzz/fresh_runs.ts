/**
 * Process that runs plans: `fresh_runs.ts FILE`, a JSON file of `FreshRuns`. Each plan has its own threads and memory.
 * Prints a digest of outputs and final states, one line per plan.
 */

import { readFile } from "node:fs/promises";
import process from "node:process";
import { createCpuDevice } from "../../runtime/cpu/mod.ts";
import type { Plan } from "../../spec/plan/plan.ts";
import { type Call, digestOf, randomWeights, runOn } from "./runs.ts";

/** Legal plans to run with random weights. */
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
