// Tasks of a search: their order in two threads, and strategies that are known to be slower without compiling them.
// rotates with: engine/planner/search/

import path from "node:path";
import { fileURLToPath } from "node:url";
import t from "tap";
import { searchTask } from "../cli/commands/search.ts";
import { findMachine } from "../cli/machines.ts";
import { processIo } from "../cli/io.ts";
import { claimOrder } from "../engine/planner/search/claim_order.ts";
import {
  compileReplica,
  type ReplicaPlan,
  type SearchStrategy,
  type SearchTask,
  stepReplica,
} from "../engine/planner/search/evaluate.ts";
import { beatGathering } from "../engine/planner/search/gathered.ts";
import { replicaMeshes } from "../engine/planner/search/meshes.ts";
import { knownOf } from "../engine/planner/search/search.ts";

const CONFIGS = fileURLToPath(new URL("references/configs", import.meta.url));
const GRANITE = path.join(CONFIGS, "granite-3.0-1b-a400m.json");

/** A search on H100 devices with this many times the bandwidth of their links. */
async function taskWith(times: number): Promise<SearchTask> {
  const io = processIo();
  const target = "8xh100";
  const machine = await findMachine(io, target);
  const links = Object.fromEntries(
    Object.entries(machine.links).map(([name, link]) =>
      [name, { ...link, bandwidth: times * link.bandwidth }] as const
    ),
  );
  return await searchTask(io, {
    model: GRANITE,
    flags: { target, maxContext: 256 },
    machine: { ...machine, links },
  });
}

t.test("gathered experts are omitted only if they take longer", async (t) => {
  const strategy: SearchStrategy = { chunks: 1, dispatcher: "gatherWeights" };
  for (const [times, slower] of [[1, true], [1e4, false]] as const) {
    const task = await taskWith(times);
    const { weights } = await knownOf(task);
    const compiled = async (strategy: SearchStrategy) =>
      await compileReplica(task, { ep: 2, tp: 2 }, {
        strategy,
        load: 8,
      }) as ReplicaPlan;
    const stepsOf = (plan: ReplicaPlan) =>
      [8, 1, 0].map((load) => stepReplica(task, plan, load));
    const other = stepsOf(await compiled({ chunks: 1 }));
    t.equal(beatGathering(other, { strategy, task, weights }), slower);
    const words = { strategy: { chunks: 2 }, task, weights };
    t.notOk(beatGathering(other, words), "another dispatcher");
    if (!slower) continue;
    for (
      const [i, { of, step }] of stepsOf(await compiled(strategy)).entries()
    ) {
      t.ok(step.seconds > other[i]!.step.seconds);
      t.ok(of.fullest.bytes.total >= other[i]!.of.fullest.bytes.total);
    }
  }
});

t.test("two threads have meshes of different tp", async (t) => {
  const known = await knownOf(await taskWith(1));
  const meshes = replicaMeshes({ ranks: 8, host: 8, experts: 32 });
  const tasks = meshes.map((mesh) => ({ kind: "mesh", mesh }) as const);
  const order = claimOrder(tasks, known);
  t.strictSame([...order].sort((a, b) => a - b), [...tasks.keys()]);
  const half = order.length / 2;
  const tpOf = (i: number) => meshes[i]!.tp;
  const main = new Set(order.slice(0, half).map(tpOf));
  const helper = new Set(order.slice(half).map(tpOf));
  t.strictSame([...main].filter((tp) => helper.has(tp)), []);
});
