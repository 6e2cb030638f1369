// Pipeline stages: memory of local stages only, schedules, and verification of every transfer.
// test/mpi/stages.test.ts tests families on meshes.
// needs: cpu
// rotates with: compiler/sharding/stages.ts, spec/stages.ts, spec/schedule.ts
import { readFileSync } from "node:fs";
import { setImmediate as immediate } from "node:timers/promises";
import t, { type Test } from "tap";
import { compile, compileTraining, sgd } from "../compiler/mod.ts";
import {
  loadTarget,
  planTraining,
  trainCheckpoint,
  type TrainOptions,
} from "../engine/mod.ts";
import { search } from "../engine/planner/search/mod.ts";
import { compileRepresentatives } from "../engine/planner/summary/compiled.ts";
import { summarizeRanks } from "../engine/planner/summary/ranks.ts";
import { createSession } from "../runtime/mod.ts";
import {
  formatPlan,
  type Machine,
  type PlanSummary,
  verifyPlan,
} from "../spec/mod.ts";
import { parseMachine } from "../spec/machine.ts";
import { buffersOf } from "../spec/plan/accesses.ts";
import { executes } from "../spec/plan/members.ts";
import { onRank, type Plan, type Step } from "../spec/plan/plan.ts";
import { idealBubble, SCHEDULE_NAMES } from "../spec/schedule.ts";
import { stageRanges } from "../spec/stages.ts";
import { sum } from "../spec/sum.ts";
import { switchyard, temporaryFolder } from "./helpers/cli.ts";
import { checkpointFolder, files, planOn } from "./helpers/checkpoints.ts";
import { repositoryFile } from "./helpers/sessions.ts";
import { backwardWork, chain, savedBytes } from "./helpers/stages.ts";
import { readOnDisk, tinyModel, tinyOptions } from "./helpers/tiny_training.ts";
import { createNullDevice } from "./helpers/null_device.ts";
import { inTurn } from "./helpers/seed.ts";

const MACHINE = repositoryFile("machines/4x24gb.json");
const MIXTRAL = repositoryFile("test/references/configs/mixtral-8x7b.json");

function planOf(name: string, mesh: string, stages?: string): Promise<Plan> {
  return planOn(name, mesh, stages === undefined ? {} : { stages });
}

t.test("a rank has the weights and caches of its stage", async (t) => {
  const [one, staged] = [
    await planOf("granitemoe-8e", "ep=1"),
    await planOf("granitemoe-8e", "pp=2", "0-0,1-2"),
  ];
  for (const [name, { kind, bytes }] of Object.entries(one.buffers)) {
    if (kind !== "weight" && kind !== "state") continue;
    const held = [0, 1].map((rank) =>
      onRank(staged.buffers[name]!.bytes, rank)
    );
    const layer = /layers\.(\d)/.exec(name)?.[1];
    const on = layer === undefined
      ? name.includes("embed") ? [0, 1] : [1]
      : [layer === "0" ? 0 : 1];
    t.strictSame(
      held,
      [0, 1].map((rank) => on.includes(rank) ? bytes : 0),
      `bytes of ${name} by rank`,
    );
  }
  const mixed = await planOf("gptoss-8e", "pp=2,ep=2", "cost");
  t.strictSame(verifyPlan(mixed), []);
  const training = await planTraining(
    checkpointFolder("granitemoe-8e"),
    files,
    { mesh: { pp: 3 }, accumulate: 2, bounds: { maxTokens: 16 } },
  );
  for (const plan of [staged, mixed, training]) checkLocalMemory(t, plan);
  const moments = Object.entries(training.buffers).flatMap(([name, buffer]) => {
    const layer = /^adamw.*layers\.(\d)/.exec(name)?.[1];
    return layer === undefined ? [] : [{ ...buffer, layer: Number(layer) }];
  });
  t.not(moments.length, 0);
  for (const { name, bytes, layer } of moments) {
    t.strictSame(
      [0, 1, 2].map((rank) => onRank(bytes, rank) > 0),
      [0, 1, 2].map((rank) => rank === layer),
      `ranks of ${name}`,
    );
  }
});

/** Checks that a rank allocates memory only for its buffers, and that its steps use all of them. */
function checkLocalMemory(t: Test, { allocations, ...plan }: Plan): void {
  const { ranks, mesh, programs } = plan;
  const buffers = Object.entries(plan.buffers);
  for (let rank = 0; rank < ranks; rank++) {
    const held = buffers.filter(([, { bytes }]) => onRank(bytes, rank) > 0);
    const on = new Set(held.map(([, { allocation }]) => allocation));
    t.strictSame(
      allocations.flatMap(({ bytes }, i) => onRank(bytes, rank) > 0 ? i : []),
      [...allocations.keys()].filter((i) => on.has(i)),
      `allocations of rank ${rank}`,
    );
    const used = new Set(
      programs.flatMap(({ steps }) =>
        steps.filter((step) => executes(mesh, rank, step)).flatMap(buffersOf)
      ),
    );
    const unused = held.filter(([name, { kind }]) =>
      kind === "scratch" && !used.has(name)
    );
    t.strictSame(unused.map(([name]) => name), [], `of rank ${rank}`);
  }
}

t.test("representative layers give the memory of all layers", async (t) => {
  const target = await loadTarget(checkpointFolder("gptoss-8e"), files);
  if (target.kind === "plan") return t.fail("a checkpoint is no plan");
  for (const stages of ["0-2,3-3", "cost"]) {
    const { plan, weights, full } = await compileRepresentatives(
      target,
      files,
      {
        mesh: { pp: 2 },
        stages,
      },
    );
    const { times } = weights.representatives;
    const all = await full();
    t.strictSame(
      summarizeRanks(plan, { times, experts: [] }).map(({ bytes }) => bytes),
      summarizeRanks(all, { times: () => 1, experts: [] })
        .map(({ bytes }) => bytes),
      stages,
    );
  }
});

t.test("stages of nearly equal cost", (t) => {
  t.strictSame(stageRanges(2, [1, 1, 1, 1, 4], "cost"), [[0, 3], [4, 4]]);
  t.strictSame(stageRanges(3, [5, 1, 1, 1, 1]), [[0, 1], [2, 3], [4, 4]]);
  t.strictSame(stageRanges(3, [5, 1, 1, 1, 1], "cost"), [
    [0, 0],
    [1, 2],
    [3, 4],
  ]);
  t.end();
});

t.test("stages that do not split the layers are rejected", async (t) => {
  const cases = [
    ["pp=2", "0-1", /do not split layers 0-2 into 2 parts/],
    ["pp=2", "0-0,2-2", /Give stages such as 0-1,2-2$/],
    ["ep=2", "0-0,1-2", /the mesh has no axis 'pp'/],
    ["pp=4", undefined, /Cannot place 3 layers on 4 stages/],
  ] as const;
  for (const [mesh, stages, message] of cases) {
    await t.rejects(planOf("granitemoe-8e", mesh, stages), { message });
  }
  await t.rejects(
    compileTraining(chain, {
      loss: "loss",
      optimizer: sgd(),
      pipeline: "gpipe",
    }),
    { message: /^Cannot use pipeline schedule 'gpipe': .* no axis 'pp'/ },
  );
  await t.rejects(planOf("gemma4moe-8e-ple", "pp=2"), {
    message: /layers that share a cache must be on one stage/,
  });
});

t.test("plans with missing, repeated or swapped transfers are rejected", async (t) => {
  const plan = await planOf("gptoss-8e", "pp=4,ep=2");
  t.strictSame(verifyPlan(plan), []);
  const sends = plan.programs[0]!.steps.flatMap(({ op }, i) =>
    op === "send" ? i : []
  );
  t.equal(sends.length, 3);
  const rejected = (title: string, change: (steps: Step[]) => void) => {
    const programs = structuredClone(plan.programs);
    change(programs[0]!.steps as Step[]);
    const mutant = { ...plan, programs };
    t.not(verifyPlan(mutant).length, 0, title);
  };
  for (const [n, at] of sends.entries()) {
    const other = sends[(n + 1) % sends.length]!;
    rejected(`transfer ${n} dropped`, (steps) => steps.splice(at, 1));
    rejected(
      `transfer ${n} twice`,
      (steps) => steps.splice(at, 0, structuredClone(steps[at]!)),
    );
    for (const field of ["from", "to", "stages"] as const) {
      rejected(`${field} of transfers ${n} and another swapped`, (steps) => {
        const [a, b] = [steps[at], steps[other]] as unknown as Record<
          string,
          unknown
        >[];
        [a![field], b![field]] = [b![field], a![field]];
      });
    }
    rejected(`transfers ${n} and another swapped`, (steps) => {
      [steps[at], steps[other]] = [steps[other]!, steps[at]!];
    });
    rejected(`transfer ${n} backwards`, (steps) => {
      const step = steps[at] as unknown as { stages: number[] };
      step.stages.reverse();
    });
    rejected(`transfer ${n} before its value`, (steps) => {
      const [step] = steps.splice(at, 1);
      steps.splice(sends[n - 1] ?? 0, 0, step!);
    });
    rejected(`a step after transfer ${n} on its source`, (steps) => {
      const step = steps[at + 1] as unknown as { ranks: unknown };
      step.ranks = (steps[at - 1] as Step).ranks;
    });
  }
});

/** Trains; returns the parameters and the optimizer state. */
async function trained(
  t: Test,
  model: string,
  { mesh = { ep: 1 }, ...more }: Partial<TrainOptions>,
): Promise<object> {
  const out = temporaryFolder(t);
  const text = Object.entries(mesh).map((axis) => axis.join("=")).join(",");
  const steps = trainCheckpoint(
    model,
    files,
    tinyOptions(text, 2, { ...more, out }),
  );
  for await (const step of steps) t.ok(step.loss > 0);
  const { parameters, optimizerState } = await readOnDisk(out);
  return { parameters, optimizerState };
}

t.test("training has the bytes of one rank with the same micro-batches", async (t) => {
  const model = await tinyModel(t);
  const accumulate = 3;
  const one = await trained(t, model, { accumulate });
  for (const pipeline of inTurn(SCHEDULE_NAMES, SCHEDULE_NAMES.length)) {
    const mesh = { pp: 2 };
    const options = { accumulate, mesh, pipeline };
    t.same(await trained(t, model, options), one, pipeline);
  }
  const axes = [{ ep: 2 }, { tp: 2 }, { dp: 2 }];
  for (const [i, mesh] of inTurn([...axes.entries()], 2)) {
    const without = await trained(t, model, { accumulate, mesh });
    const staged = await trained(t, model, {
      accumulate,
      mesh: { pp: 2, ...mesh },
      pipeline: SCHEDULE_NAMES[i]!,
      sharing: i === 0 ? "separate" : "shared",
    });
    t.same(staged, without, `pp=2 and ${Object.keys(mesh)[0]}`);
  }
});

t.test("a stage executes the next run while the other still executes the first", async (t) => {
  const plan = await compile(chain, { mesh: { pp: 2 } });
  const launches: number[] = [];
  let release = () => {};
  const blocked = new Promise<void>((resolve) => release = resolve);
  const devices = [0, 1].map((rank) => {
    const device = createNullDevice("null", () => {
      launches.push(rank);
    });
    const { read } = device;
    return rank === 0 ? device : {
      ...device,
      async read(...range: Parameters<typeof read>) {
        await blocked;
        return await read(...range);
      },
    };
  });
  const session = await createSession({ ...plan, weights: [] }, { devices });
  t.equal(session.concurrentRuns, 2);
  const inputs = {
    x: { dtype: "f32", shape: [1, 1024], data: new Float32Array(1024) },
  } as const;
  const runs = [session.run("main", inputs), session.run("main", inputs)];
  const perRun = (rank: number) =>
    plan.programs[0]!.steps.filter((step) =>
      step.op === "launch" && executes(plan.mesh, rank, step)
    ).length;
  const launched = (rank: number) =>
    launches.filter((other) => other === rank).length;
  for (let i = 0; launched(0) < 2 * perRun(0) && i < 1e4; i++) {
    await immediate();
  }
  t.equal(launched(0), 2 * perRun(0), "stage 0 has executed both");
  t.equal(launched(1), perRun(1), "stage 1 is in the first run");
  release();
  await Promise.all(runs);
  t.equal(launched(1), 2 * perRun(1));
  session.close();
});

t.test("schedules and their bubbles", async (t) => {
  for (const [stages, microBatches] of [[2, 4], [4, 8], [4, 16]] as const) {
    const size = { stages, microBatches };
    const bubble = (stages - 1) / microBatches;
    t.equal(idealBubble("gpipe", size), bubble);
    t.equal(idealBubble("1f1b", size), bubble);
    t.ok(idealBubble("zerobubble", size) <= bubble / 2);
  }
  const machine = parseMachine(readFileSync(MACHINE, "utf8"), MACHINE);
  const found = new Map<string, { counted: number; peaks: number[] }>();
  for (const pipeline of SCHEDULE_NAMES) {
    const plan = await compileTraining(chain, {
      loss: "loss",
      optimizer: sgd(),
      mesh: { pp: 4 },
      microBatches: 8,
      pipeline,
    });
    t.strictSame(verifyPlan(plan), []);
    const { bubble } = plan.pipeline!;
    t.match(
      formatPlan(plan),
      `pipeline  ${pipeline}, 4 stages, 8 micro-batches: a bubble of ${
        Number((100 * bubble).toFixed(1))
      } % of the work`,
    );
    const counted = countedBubble(plan, machine);
    const peaks = [1, 2, 3].map((rank) => onRank(plan.peakBytes, rank));
    found.set(pipeline, { counted, peaks });
    t.ok(
      Math.abs(counted - bubble) < 0.15 * bubble,
      `${pipeline}: ${counted} of predicted steps, ${bubble} in the plan`,
    );
  }
  const [first, all, split] = SCHEDULE_NAMES.map((name) => found.get(name)!);
  // Stage s saves activations of p - s micro-batches.
  for (const [i, more] of first!.peaks.slice(0, -1).entries()) {
    const fewer = first!.peaks[i + 1]!;
    // Only the last stage has the inputs of the loss.
    t.ok(Math.abs(more - fewer - savedBytes) < 100, `stage ${i + 1}`);
  }
  t.ok(
    first!.peaks[0]! < 0.6 * all!.peaks[0]!,
    "1f1b saves fewer activations",
  );
  t.ok(split!.counted < 0.55 * first!.counted, "split gradients wait less");
});

/** Idle time of stages until the last backward pass ends, relative to their busy time. */
function countedBubble(plan: Plan, machine: Machine): number {
  const work = backwardWork(plan, machine);
  const busy = sum(work.map(({ seconds }) => seconds));
  const end = Math.max(...work.map(({ start, seconds }) => start + seconds));
  return (4 * end - busy) / busy;
}

t.test("predictions have a step in flight on each stage", async (t) => {
  const predicted = async (mesh: string) => {
    const { code, out, err } = await switchyard([
      ...["plan", MIXTRAL, "--target", MACHINE, "--mesh", mesh, "--json"],
    ]);
    t.ok(code === 0 || code === 3, err);
    const summary = JSON.parse(out) as PlanSummary;
    return summary.predicted!;
  };
  const staged = await predicted("pp=4");
  for (const phase of ["prefill", "decode"] as const) {
    const { inFlight, tokens, seconds, tokensPerSecond } = staged[phase]!;
    t.equal(inFlight, 4);
    // Four stages with equal layers; the last also has the vocabulary.
    const speedup = tokensPerSecond * seconds / tokens;
    t.ok(3.5 < speedup && speedup <= 4, `${phase}: ${speedup}`);
  }
  t.equal(staged.decode!.sequences, 2, "a quarter of the sequences");
  const { decode } = await predicted("ep=4");
  t.notOk(decode!.inFlight);
});

t.test("search uses stages if the model does not fit otherwise", async (t) => {
  const target = await loadTarget(
    MIXTRAL,
    files,
    { withoutWeights: true },
  );
  if (target.kind === "plan") return t.fail("a configuration is no plan");
  const { devices, links, hosts, ...machine } = parseMachine(
    readFileSync(MACHINE, "utf8"),
    MACHINE,
  );
  const small = Object.fromEntries(
    Object.entries(devices).map(([kind, device]) =>
      [kind, { ...device, memory: 10e9 }] as const
    ),
  );
  const { found, thrownOut } = await search({
    target,
    files,
    machine: {
      ...machine,
      devices: small,
      hosts: [{ ...hosts[0]!, count: 4 }],
      links: { ...links, otherHost: links.sameHost! },
    },
    phase: "decode",
    context: 1024,
    compile: {},
    objective: "memory",
  });
  t.ok(thrownOut.some(({ mesh }) => mesh.pp === undefined));
  t.ok(found.length > 0 && found.every(({ mesh }) => mesh.pp === 2));
});
