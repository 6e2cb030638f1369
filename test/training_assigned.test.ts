/** Optimizer state sharded to the ranks that hold the same parameters: the same bits, for a part of the memory. */
// needs: cpu, gpu

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

/** Steps of training the layer. */
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

/** What a run gives and leaves, and what it took. */
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
  const kept = Object.values(plan.buffers).filter(({ kind }) =>
    kind === "weight" || kind === "state"
  ).map(({ name }) => name);
  const after = await session.read(kept);
  return { plan, results, after, statistics: session.statistics() };
}

/** Bytes of a state on each rank. */
function bytesOf({ buffers, ranks }: Plan, state: string): number[] {
  const { bytes } = buffers[state]!;
  return Array.from({ length: ranks }, (_, rank) => onRank(bytes, rank));
}

/** Collectives that add up parts of sums or bring them together, by group. */
function sumsOver({ programs }: Plan, over: string): number {
  return programs[0]!.steps.filter((step) =>
    step.op === "allGather" && !step.rows && !step.part &&
    step.over.join("+") === over && step.bytes > 4
  ).length;
}

/** Values in order: parameters of which ranks have parts may be stored in another order of axes. */
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
      const whole = await trained(of, { mesh });
      const sharded = await trained(of, { mesh, zero: 1 });
      const gathered = await trained(of, { mesh, zero: 3 });
      for (const { results, after } of [sharded, gathered]) {
        t.equal(digest(results), digest(whole.results), "outputs");
        t.equal(
          digest([inOrder(after)]),
          digest([inOrder(whole.after)]),
          "what is kept",
        );
      }
      for (const { plan, statistics } of [whole, sharded, gathered]) {
        for (const { rank, peakBytes, sentBytes } of statistics.ranks) {
          t.equal(peakBytes.actual, onRank(plan.peakBytes, rank), "memory");
          for (const [what, bytes] of Object.entries(sentBytes)) {
            t.equal(bytes.actual, bytes.predicted, `${what} of rank ${rank}`);
          }
        }
      }
    });
  }
}

t.test("each rank remembers its part, and sends each sum once", async (t) => {
  const of = await steps();
  const mesh = { dp: 2, ep: 2 };
  const whole = await compileCase(of, { mesh });
  const sharded = await compileCase(of, { mesh, zero: 1 });
  // Six of a gain over four ranks, 48 of a router; 4 of 8 experts with 5 x 6 over two ranks.
  t.same(bytesOf(whole, "adamw.mean.gain"), [24, 24, 24, 24]);
  t.same(bytesOf(sharded, "adamw.mean.gain"), [8, 8, 8, 4]);
  t.same(bytesOf(sharded, "adamw.mean.router"), [48, 48, 48, 48]);
  t.same(
    bytesOf(whole, "adamw.mean.gate.{expert}"),
    new Array(4).fill(4 * 4 * 30),
  );
  t.same(
    bytesOf(sharded, "adamw.mean.gate.{expert}"),
    new Array(4).fill(4 * 4 * 15),
  );
  for (const plan of [whole, sharded]) {
    t.equal(sumsOver(plan, "dp+ep"), 2, "to add them up, and to bring them");
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
  t.equal(digest([now]), digest([after]), "what is kept");
  for (const { sentBytes: { reduce } } of session.statistics().ranks) {
    t.equal(reduce.actual, reduce.predicted);
  }
  for (const device of devices) device.destroy();
});

t.test("sharded on four ranks of a GPU", { skip }, async (t) => {
  const of = await steps({ clipNorm: 0.05 });
  const mesh = { dp: 2, ep: 2 };
  const whole = await trained(of, { mesh }, "gpu");
  const sharded = await trained(of, { mesh, zero: 1 }, "gpu");
  t.equal(digest([sharded.after]), digest([whole.after]), "the same bits");
});
