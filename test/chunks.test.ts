/** Chunked dispatch: the same bits, exact byte counts, and exchanges that overlap with computation. */
// needs: cpu, gpu
// rotates with: compiler/passes/overlap.ts, compiler/passes/expert_ranges.ts, compiler/passes/expand.ts, compiler/passes/lower/routing/exchange.ts, compiler/kernels/routing/regroup.ts

import { readFileSync } from "node:fs";
import path from "node:path";
import t from "tap";
import {
  add,
  combine,
  compile,
  type CompileOptions,
  dispatch,
  dot,
  map,
  model,
  mul,
  route,
  sum,
  upTo,
} from "../compiler/mod.ts";
import { compileGraph } from "../compiler/compile.ts";
import { withGradients } from "../compiler/graph/gradients/gradients.ts";
import { trace } from "../compiler/graph/trace.ts";
import {
  type Communicator,
  createCommunicator,
  type Exchange,
} from "../runtime/exchange/communicator.ts";
import { Tracer } from "../runtime/mod.ts";
import { formatPlan, onRank, type Plan } from "../spec/mod.ts";
import { checkpointFolder } from "./helpers/checkpoints.ts";
import {
  integers,
  switchyard,
  temporaryFolder,
  writeRaw,
} from "./helpers/cli.ts";
import { smallLayer } from "./helpers/plans.ts";
import {
  type Case,
  closeDevices,
  compileCase,
  digest,
  EXPERT_MESHES,
  runCalls,
  runCase,
  skip,
  tensorsOf,
  waves,
} from "./helpers/run_model.ts";
import {
  compileCheckpoint,
  openDevices,
  openSession,
  watchDevice,
} from "./helpers/sessions.ts";
import { devicesInTurn } from "./helpers/needs.ts";
import { isInTurn } from "./helpers/seed.ts";

t.teardown(closeDevices);

const MESHES: readonly CompileOptions[] = [
  {},
  ...EXPERT_MESHES,
  { mesh: { ep: 4 } },
];

const layer: Case = {
  model: smallLayer,
  calls: [48, 5, 1, 0].map((tokens) => ({ x: waves(16 * tokens, tokens) })),
};

/** Values of one routing, dispatched in sequence and at once, scaled on the way; biases; a nested routing. */
const several: Case = {
  model: model({ token: upTo(12), embed: 8, ffn: 12, expert: 8 }, (m) => {
    const x = m.input("x", "token embed");
    const logits = dot(x, m.param("router", "expert embed"), "embed");
    const over = { over: "expert" } as const;
    const weighed = route(logits, { ...over, topK: 2, preset: "llama4" });
    const olmoe = route(logits, { ...over, topK: 2, preset: "olmoe" });
    const scale = dispatch(m.input("scale", "token embed"), weighed);
    const hidden = add(
      dot(
        dispatch(x, weighed),
        m.param("experts.{expert}.up", "expert ffn embed"),
        "embed",
      ),
      m.param("experts.{expert}.bias", "expert ffn"),
    );
    const down = m.param("experts.{expert}.down", "expert embed ffn");
    const done = dot(map((u) => Math.max(u, 0), hidden), down, "ffn");
    const first = combine(mul(done, scale), weighed);
    const back = dispatch(first, weighed);
    return {
      first,
      same: combine(scale, weighed),
      second: combine(mul(back, done), weighed),
      other: add(first, combine(mul(dispatch(first, olmoe), 2), olmoe)),
    };
  }),
};

/** An MoE layer with a loss. */
const trained = model(
  { token: upTo(8), embed: 4, ffn: 6, expert: 4 },
  (m) => {
    const x = m.input("x", "token embed");
    const logits = dot(x, m.param("router", "expert embed"), "embed");
    const routing = route(logits, {
      over: "expert",
      topK: 2,
      preset: "mixtral",
    });
    const w = m.param("w", "expert ffn embed");
    const y = combine(dot(dispatch(x, routing), w, "embed"), routing);
    return { loss: sum(sum(y, "ffn"), "token") };
  },
);

for (const kind of devicesInTurn("chunks")) {
  const options = kind === "gpu" ? { skip } : {};
  t.test(`chunks change no bit on a shared ${kind}`, options, async (t) => {
    const wanted = digest(await runCase(layer, kind));
    const meshes = kind === "gpu" ? MESHES.slice(1, 3) : MESHES;
    for (const [i, mesh] of meshes.entries()) {
      for (const chunks of kind === "gpu" ? [2] : [1, 2, 3]) {
        if (kind === "cpu" && !isInTurn(i + chunks, 3)) continue;
        const found = await runCase(layer, kind, { ...mesh, chunks });
        t.equal(digest(found), wanted, `${JSON.stringify(mesh)} ${chunks}`);
      }
    }
  });

  t.test(`chunks change no bit on separate ${kind}s`, options, async (t) => {
    const wanted = digest(await runCase(layer, kind));
    const meshes = kind === "gpu" ? MESHES.slice(1, 2) : MESHES;
    for (const [i, mesh] of meshes.entries()) {
      for (const chunks of kind === "gpu" ? [2] : [1, 2, 3]) {
        if (kind === "cpu" && !isInTurn(i + chunks, 3)) continue;
        const plan = await compileCase(layer, { ...mesh, chunks });
        const session = await openSession(plan, {
          target: kind,
          sharing: "separate",
          statistics: true,
          tensors: await tensorsOf(layer),
        });
        const title = `${JSON.stringify(mesh)} ${chunks}`;
        t.equal(digest(await runCalls(layer, session)), wanted, title);
        const { ranks } = session.statistics();
        session.close();
        const staged = kind === "gpu" ? ranks : ranks.map((rank) => ({
          ...rank,
          // Memory of the CPU is host memory.
          stagingBytes: { predicted: 0, actual: 0 },
        }));
        for (const { rank, ...figures } of staged) {
          for (const [predicted, actual] of figurePairs(figures)) {
            t.equal(actual, predicted, `${title}: bytes of rank ${rank}`);
          }
        }
      }
    }
  });
}

/** All pairs of predicted and actual figures in a value. */
function figurePairs(value: unknown): [predicted: unknown, actual: unknown][] {
  if (typeof value !== "object" || value === null) return [];
  return "predicted" in value && "actual" in value
    ? [[value.predicted, value.actual]]
    : Object.values(value).flatMap(figurePairs);
}

t.test("several values by one routing, and dispatched token ids", async (t) => {
  const wanted = digest(await runCase(several, "cpu"));
  for (const mesh of MESHES) {
    const title = JSON.stringify(mesh);
    const found = await runCase(several, "cpu", { ...mesh, chunks: 2 });
    t.equal(digest(found), wanted, title);
    const [checked] = await runCase(several, "cpu", {
      ...mesh,
      chunks: 3,
      check: true,
    });
    const { "check.0": first, "check.1": second, ...rest } = checked!;
    t.equal(digest([rest]), wanted, `${title}, checked`);
    t.strictSame([...first!.data, ...second!.data].filter((n) => n > 0), []);
  }
});

t.test("published checkpoints give the same bytes: MXFP4, shared experts, expert groups", async (t) => {
  const folder = temporaryFolder(t);
  const inputs = path.join(folder, "inputs");
  await writeRaw(inputs, { input_ids: integers([2, 3], [5, 6, 7, 8, 9, 4]) });
  for (const name of ["gptoss-8e-mxfp4", "llama4-8e", "deepseekv3-16e"]) {
    const outputs: Buffer[] = [];
    for (const chunks of ["1", "2"]) {
      const file = path.join(folder, chunks);
      const { code, err } = await switchyard([
        ...["run", checkpointFolder(name), "--inputs", inputs],
        ...["--mesh", "ep=3", "--devices", "separate", "--adapter", "cpu"],
        ...["--chunks", chunks, "--check", "--outputs", file],
      ]);
      t.strictSame([code, err], [0, ""]);
      outputs.push(readFileSync(file));
    }
    t.ok(outputs[1]!.equals(outputs[0]!), name);
  }
});

function waitsOf(plan: Plan): number {
  return plan.programs[0]!.steps.filter(({ op }) => op === "wait").length;
}

t.test("steps independent of the experts run while rows are in flight", async (t) => {
  const plan = await compileCheckpoint("deepseekv3-16e", {
    mesh: { ep: 2 },
    chunks: 2,
  });
  const { steps } = plan.programs[0]!;
  const wait = steps.findIndex(({ op }) => op === "wait");
  const start = steps.findLastIndex(({ op }, i) =>
    op === "allToAll" && i < wait
  );
  const between = steps.slice(start + 1, wait);
  t.ok(between.length > 0);
  for (const step of between) t.match(step, { op: "launch" });
  const bindings = between.flatMap((step) =>
    step.op === "launch" ? Object.values(step.bindings) : []
  );
  t.ok(bindings.some((name) => name.includes("shared_experts")));
});

t.test("a rank has at most one chunk per expert, and an exchange has the capacity of its chunk", async (t) => {
  const plan = await compile(smallLayer, { mesh: { ep: 4 }, chunks: 3 });
  const { steps } = plan.programs[0]!;
  t.equal(waitsOf(plan), 4, "two chunks dispatched, two combined");
  const rows = steps.flatMap((step) =>
    step.op === "allToAll" && step.direction === "forward"
      ? [onRank(plan.buffers[step.to]!.axes[0]!.size, 0)]
      : []
  );
  t.strictSame(rows, [64, 64], "an expert receives a token once");
  for (const chunks of [0, -1, 1.5, NaN, 1025]) {
    await t.rejects(compile(smallLayer, { chunks }), {
      message:
        `Cannot split dispatches into ${chunks} chunks: the number is not whole or not from 1 to 1024. Give one that is`,
    });
  }
});

t.test("a sum over all rows of an expert cannot be split into chunks", async (t) => {
  const graph = withGradients(trace(trained), "loss");
  await t.rejects(compileGraph(graph, { mesh: { ep: 2 }, chunks: 2 }), {
    message:
      /^Cannot split a dispatch into chunks: '\w+' needs all of its rows at once\. Compile with one chunk$/,
  });
});

t.test("plan text of chunks", async (t) => {
  const plan = await compile(smallLayer, { mesh: { ep: 2 }, chunks: 2 });
  const steps = formatPlan(plan).split("\n")
    .filter((line) => /^ +%/.test(line))
    .map((line) => line.replace(/ +\/\/ \S+$/, ""));
  const golden = new URL("fixtures/text/chunks.txt", import.meta.url);
  t.equal(`${steps.join("\n")}\n`, readFileSync(golden, "utf8"));
});

/** A communicator whose exchanges in flight end no sooner than `gate` resolves. */
function delayed(
  gate: (handle: string, done: Promise<void>) => Promise<void>,
): Communicator {
  const real = createCommunicator();
  return {
    ...real,
    bind(step, group, context): Exchange {
      const exchange = real.bind(step, group, context);
      return step.op === "allToAll" && step.handle !== undefined
        ? (counts) => gate(step.handle!, Promise.resolve(exchange(counts)))
        : exchange;
    },
  };
}

t.test("experts compute on a chunk while the next one is in flight", async (t) => {
  const plan = await compileCase(layer, { mesh: { ep: 2 }, chunks: 2 });
  // The second chunk ends only after the experts have started on the first: waiting for it earlier would deadlock.
  let started: () => void = () => {};
  const computing = new Promise<void>((resolve) => started = resolve);
  const devices =
    (await openDevices(plan, { target: "cpu", sharing: "separate" }))
      .map((device) =>
        watchDevice(device, {
          launch(kernel, buffers, workgroups, label) {
            if (/^dot over ffn.*chunk 1 of 2$/.test(label ?? "")) started();
            device.launch(kernel, buffers, workgroups, label);
          },
        })
      );
  let time = 0;
  const tracer = new Tracer(() => time++);
  const session = await openSession(plan, {
    devices,
    tracer,
    tensors: await tensorsOf(layer),
    communicator: delayed(async (handle, done) => {
      if (handle === "dispatch 0 chunk 2 of 2") await computing;
      await done;
    }),
  });
  const found = digest(await runCalls(layer, session));
  session.close();
  t.equal(found, digest(await runCase(layer, "cpu")), "the same bytes");
  const events = tracer.toTrace().traceEvents.filter(({ ph }) => ph === "X");
  const exchange = events.find(({ name, cat, tid }) =>
    cat === "allToAll" && name.startsWith("dispatch") &&
    name.endsWith("chunk 2 of 2") && tid === 1
  )!;
  const meanwhile = events.filter(({ tid, cat, ts, dur }) =>
    tid === 1 && cat === "launch" && ts > exchange.ts &&
    ts + dur! < exchange.ts + exchange.dur!
  );
  t.ok(
    meanwhile.some(({ name }) => name.endsWith("chunk 1 of 2")),
    "the trace shows expert computation during the exchange",
  );
  t.ok(events.some(({ cat }) => cat === "wait"), "the trace shows waits");
});

t.test("an exchange that fails in flight fails only its run", async (t) => {
  const plan = await compileCase(layer, { mesh: { ep: 2 }, chunks: 2 });
  let failing = true;
  const session = await openSession(plan, {
    target: "cpu",
    sharing: "separate",
    tensors: await tensorsOf(layer),
    communicator: delayed(async (handle, done) => {
      await done;
      if (failing && handle === "combine 0 chunk 1 of 2") {
        throw new Error("cut");
      }
    }),
  });
  await t.rejects(runCalls(layer, session), { message: "cut" });
  failing = false;
  const found = digest(await runCalls(layer, session));
  t.equal(found, digest(await runCase(layer, "cpu")));
  session.close();
});
