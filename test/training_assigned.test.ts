/** Optimizer state sharded over ranks with the same parameters (ZeRO): the same bits, less memory. */
// needs: cpu, gpu
// rotates with: compiler/sharding/updates.ts

import t from "tap";
import { trace } from "../compiler/graph/trace.ts";
import {
  trainStep,
  type TrainStepOptions,
} from "../compiler/graph/train_step.ts";
import type { CompileOptions } from "../compiler/mod.ts";
import { lowerScalars } from "../compiler/scalars.ts";
import { createCpuDevice } from "../runtime/cpu/mod.ts";
import { createSession, type Device, type HostTensor } from "../runtime/mod.ts";
import { onRank } from "../spec/mod.ts";
import type { Plan } from "../spec/plan/plan.ts";
import {
  type Case,
  closeDevices,
  compileCase,
  deviceOf,
  digest,
  runCalls,
  skip,
  tensorsOf,
} from "./helpers/run_model.ts";
import { CALLS, layer } from "./helpers/training_layer.ts";
import { isInTurn } from "./helpers/seed.ts";

t.teardown(closeDevices);

/** Training steps of the layer. */
async function steps(options: Partial<TrainStepOptions> = {}): Promise<Case> {
  const graph = trace(layer("mixtral", 2));
  const optimizer = { kind: "adamW", weightDecay: 0.1 } as const;
  return {
    model: trainStep(
      graph,
      { loss: "loss", optimizer, ...options },
      await lowerScalars(graph),
    ),
    calls: CALLS.map((call, i) => ({
      ...call,
      learning_rate: [0.1],
      step: [i + 1],
    })),
  };
}

/** Runs a case; returns outputs, final weights and states, and statistics. */
async function trained(
  of: Case,
  options: CompileOptions,
  kind: "cpu" | "gpu" = "cpu",
) {
  const plan = await compileCase(of, options);
  const device = await deviceOf(kind);
  const session = await createSession(plan, {
    devices: new Array<Device>(plan.ranks).fill(device),
    tensors: await tensorsOf(of),
    statistics: true,
  });
  const results = await runCalls(of, session);
  const names = Object.values(plan.buffers).filter(({ kind }) =>
    kind === "weight" || kind === "state"
  ).map(({ name }) => name);
  const after = await session.read(names);
  return { plan, results, after, statistics: session.statistics() };
}

/** Bytes of a state on each rank. */
function bytesOf({ buffers, ranks }: Plan, state: string): number[] {
  const { bytes } = buffers[state]!;
  return Array.from({ length: ranks }, (_, rank) => onRank(bytes, rank));
}

/** Number of collectives that reduce partial sums or gather results, over a group. */
function sumsOver({ programs }: Plan, over: string): number {
  return programs[0]!.steps.filter((step) =>
    step.op === "allGather" && !step.rows && !step.part &&
    step.over.join("+") === over && step.bytes > 4
  ).length;
}

/** Sorts values: sharded parameters may be stored in another axis order. */
function inOrder(tensors: { readonly [name: string]: HostTensor }) {
  return Object.fromEntries(
    Object.entries(tensors).map(([name, { data, ...rest }]) =>
      [name, { ...rest, data: data.slice().sort() }] as const
    ),
  );
}

const MESHES = [
  { dp: 2 },
  { ep: 2 },
  { dp: 2, ep: 2 },
  { dp: 3, ep: 2 },
  { dp: 4, ep: 2 },
  { dp: 2, ep: 3 },
];

for (const [i, mesh] of MESHES.entries()) {
  for (const [at, clipNorm] of [undefined, 0.05].entries()) {
    if (!isInTurn(i + at, 3)) continue;
    const title = `${JSON.stringify(mesh)}${clipNorm ? ", clipped" : ""}`;
    t.test(title, async (t) => {
      const of = await steps(clipNorm === undefined ? {} : { clipNorm });
      const replicated = await trained(of, { mesh });
      const sharded = await trained(of, { mesh, zero: 1 });
      const gathered = await trained(of, { mesh, zero: 3 });
      for (const { results, after } of [sharded, gathered]) {
        t.equal(digest(results), digest(replicated.results), "outputs");
        t.equal(
          digest([inOrder(after)]),
          digest([inOrder(replicated.after)]),
          "weights and states",
        );
      }
      for (const { plan, statistics } of [replicated, sharded, gathered]) {
        for (const { rank, peakBytes, sentBytes } of statistics.ranks) {
          t.equal(peakBytes.actual, onRank(plan.peakBytes, rank), "memory");
          for (const [collective, bytes] of Object.entries(sentBytes)) {
            t.equal(
              bytes.actual,
              bytes.predicted,
              `${collective} of rank ${rank}`,
            );
          }
        }
      }
    });
  }
}

t.test("each rank has its shard of the state, and sends each sum once", async (t) => {
  const of = await steps();
  const mesh = { dp: 2, ep: 2 };
  const replicated = await compileCase(of, { mesh });
  const sharded = await compileCase(of, { mesh, zero: 1 });
  // Six elements of a gain over four ranks, 48 of a router; 4 of 8 experts with 5 x 6 over two ranks.
  t.same(bytesOf(replicated, "adamw.mean.gain"), [24, 24, 24, 24]);
  t.same(bytesOf(sharded, "adamw.mean.gain"), [8, 8, 8, 4]);
  t.same(bytesOf(sharded, "adamw.mean.router"), [48, 48, 48, 48]);
  t.same(
    bytesOf(replicated, "adamw.mean.gate.{expert}"),
    new Array(4).fill(4 * 4 * 30),
  );
  t.same(
    bytesOf(sharded, "adamw.mean.gate.{expert}"),
    new Array(4).fill(4 * 4 * 15),
  );
  for (const plan of [replicated, sharded]) {
    t.equal(sumsOver(plan, "dp+ep"), 2, "to reduce them and to gather results");
    t.equal(sumsOver(plan, "dp"), 2, "of experts");
  }
});

t.test("between devices", async (t) => {
  const of = await steps({ clipNorm: 0.05 });
  const options = {
    mesh: { dp: 2, ep: 2 },
    zero: 1,
  } as const;
  const { plan, results, after } = await trained(of, options);
  const devices = await Promise.all(
    Array.from({ length: 4 }, () => createCpuDevice({ threads: 1 })),
  );
  const session = await createSession(plan, {
    devices,
    tensors: await tensorsOf(of),
    statistics: true,
  });
  t.equal(digest(await runCalls(of, session)), digest(results), "outputs");
  const now = await session.read(Object.keys(after));
  t.equal(digest([now]), digest([after]), "weights and states");
  for (const { sentBytes: { reduce } } of session.statistics().ranks) {
    t.equal(reduce.actual, reduce.predicted);
  }
  for (const device of devices) device.destroy();
});

t.test("sharded on four ranks of a GPU", { skip }, async (t) => {
  const of = await steps({ clipNorm: 0.05 });
  const mesh = { dp: 2, ep: 2 };
  const replicated = await trained(of, { mesh }, "gpu");
  const sharded = await trained(of, { mesh, zero: 1 }, "gpu");
  t.equal(digest([sharded.after]), digest([replicated.after]), "the same bits");
});
