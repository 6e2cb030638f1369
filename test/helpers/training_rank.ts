/** One rank of the jobs of test/mpi/training.test.ts: `training_rank.ts MESH`. Rank 0 prints the digest of what steps give. */

import process from "node:process";
import { createCpuDevice } from "../../runtime/cpu/mod.ts";
import { createMpiCommunicator, openWorld } from "../../runtime/mpi/mod.ts";
import { createSession } from "../../runtime/mod.ts";
import { compileCase, digest, runCalls, tensorsOf } from "./run_model.ts";
import { stepCase } from "./training_layer.ts";

const mesh = JSON.parse(process.argv[2]!) as {
  readonly [axis: string]: number;
};
const of = await stepCase();
const plan = await compileCase(of, { mesh });
const world = await openWorld();
const session = await createSession(plan, {
  devices: [await createCpuDevice({ threads: 1 })],
  tensors: await tensorsOf(of),
  communicator: await createMpiCommunicator(world, plan),
});
const results = await runCalls(of, session);
if (world.rank === 0) console.log(digest(results));
session.close();
await world.finish();
