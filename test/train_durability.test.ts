/** Checkpoints of trainings: crashes during writes, and loading on other meshes. */
// needs: cpu
// rotates with: engine/train/

import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { readdir, readFile } from "node:fs/promises";
import path from "node:path";
import t, { type Test } from "tap";
import { compileTraining } from "../compiler/mod.ts";
import {
  randomNumbers,
  type StepMetrics,
  trainCheckpoint,
  type TrainOptions,
} from "../engine/mod.ts";
import { listWeightFiles } from "../engine/checkpoint/checkpoint.ts";
import { withTensors } from "../engine/checkpoint/tensors.ts";
import { checkParameters, loadOptimizerState } from "../engine/train/load.ts";
import { readTraining, saveTraining } from "../engine/train/saved.ts";
import { publishedModel } from "../models/published.ts";
import { createCpuDevice } from "../runtime/cpu/mod.ts";
import { createSession } from "../runtime/mod.ts";
import { assertLegal } from "../spec/mod.ts";
import { files, meshOf } from "./helpers/checkpoints.ts";
import { temporaryFolder } from "./helpers/cli.ts";
import { startedProgram } from "./helpers/compiled.ts";
import { inTurn, repeatWith, SEED } from "./helpers/seed.ts";
import {
  contents,
  floatsOf,
  type OnDisk,
  readOnDisk,
  TEXT,
  tinyConfig,
  tinyModel,
  tinyOptions,
} from "./helpers/tiny_training.ts";

async function steps(
  folder: string,
  options: TrainOptions,
): Promise<StepMetrics[]> {
  const found: StepMetrics[] = [];
  for await (const step of trainCheckpoint(folder, files, options)) {
    found.push(step);
  }
  return found;
}

/** Loads a training on a mesh and saves it there. */
async function reload(
  folder: string,
  mesh: string,
  out: string,
): Promise<OnDisk> {
  const saved = await readTraining(folder, files);
  const { batch, length, optimizer, dtype } = saved.settings;
  const plan = await compileTraining(
    publishedModel(await tinyConfig()).build({
      maxTokens: batch! * length!,
      maxSequences: batch!,
      maxContext: length!,
      training: { auxiliary: 0.01 },
    }),
    {
      loss: "loss",
      optimizer,
      ...dtype === undefined ? {} : { dtype },
      mesh: meshOf(mesh),
    },
  );
  const ranks = Array.from({ length: plan.ranks }, (_, rank) => rank);
  const device = await createCpuDevice();
  await withTensors(
    await listWeightFiles(folder, files),
    files,
    async (tensors) => {
      const session = await createSession(plan, {
        devices: ranks.map(() => device),
        tensors,
        verify: assertLegal,
      });
      const opened = {
        plan,
        session,
        ranks,
        rank: 0,
        optimizer,
        gatherTexts: (text: string) => Promise.resolve([text]),
      };
      try {
        await checkParameters(folder, saved, tensors, opened);
        await loadOptimizerState(folder, files, saved, opened);
        const { step, position, text, settings } = saved;
        await files.makeFolder(out);
        await saveTraining(out, files, opened, {
          step,
          position,
          text,
          settings,
        });
      } finally {
        session.close();
      }
    },
  );
  return await readOnDisk(out);
}

t.test("a checkpoint on other meshes", async (t) => {
  const model = await tinyModel(t);
  const folder = temporaryFolder(t);
  const saved = new Map<string, OnDisk>();
  const metrics = new Map<string, StepMetrics[]>();
  const meshes = ["ep=1", "ep=4", "tp=2,ep=2"];
  for (const mesh of meshes) {
    const out = path.join(folder, mesh);
    metrics.set(mesh, await steps(model, tinyOptions(mesh, 2, { out })));
    saved.set(mesh, await readOnDisk(out));
  }
  const alone = metrics.get("ep=1")!;
  const sharded = metrics.get("ep=4")!;
  t.equal(sharded.length, 2, "two steps");
  t.ok(sharded.every(({ sentBytes }) => sentBytes > 0), "ranks exchange");
  // Embedding and output share weights: gradients cover the vocabulary partly on one mesh, completely on the other.
  for (const metric of [sharded, metrics.get("tp=2,ep=2")!]) {
    for (const [i, { loss, gradientNorm }] of metric.entries()) {
      t.ok(Math.abs(loss / alone[i]!.loss - 1) < 1e-5, `loss ${loss}`);
      t.ok(
        Math.abs(gradientNorm / alone[i]!.gradientNorm - 1) < 1e-4,
        `gradient ${gradientNorm}`,
      );
    }
  }
  const { shards, parameters } = saved.get("ep=4")!;
  t.equal(shards.length, 4, "each rank writes its own file");
  t.ok(
    Object.keys(parameters).includes(
      "model.layers.1.mlp.experts.3.down_proj.weight",
    ),
    "names are those of the family",
  );
  // The test of 16-bit weights goes from dp=2,ep=2 to one rank, to uneven shards, and to other rank counts.
  for (
    const [from, to] of [
      ["ep=4", "ep=2"],
      ["ep=1", "dp=2,ep=2"],
    ] as const
  ) {
    const out = path.join(folder, `${from} on ${to}`);
    const { shards, ...found } = await reload(
      path.join(folder, from),
      to,
      out,
    );
    const { shards: _, ...wanted } = saved.get(from)!;
    t.same(found, wanted, `${from} on ${to}: all bytes`);
    const ranks = Object.values(meshOf(to)).reduce((n, size) => n * size, 1);
    t.equal(shards.length, ranks, `${to}: a file per rank`);
  }
  const out = path.join(folder, "ep=4");
  const on = await steps(out, tinyOptions("ep=2", 3, { out, resume: true }));
  t.equal(on.length, 1, "a training resumes on another mesh");

  const index = path.join(out, "model.safetensors.index.json");
  const { metadata, ...rest } = JSON.parse(await files.readText(index));
  const damaged: [change: object, state: RegExp][] = [
    [{ format: 1 }, /its format is 1, and this version reads 2/],
    [{ step: -1 }, /the training's '\/step' must be at least 0/],
    [{ settings: {} }, /the training's '\/settings' has no field 'optimizer'/],
    [
      { optimizerState: { a: { shape: [1], slices: [{}] } } },
      /'\/optimizerState\/a\/slices\/0' has no field 'file'/,
    ],
  ];
  for (const [change, message] of damaged) {
    const training = { ...metadata.training, ...change };
    const text = JSON.stringify({ ...rest, metadata: { training } });
    await files.write(index, [new TextEncoder().encode(text)]);
    await t.rejects(readTraining(out, files), { name: "DataError", message });
  }
});

t.test("sharded parameters with tensor parallelism: all bytes", async (t) => {
  const model = await tinyModel(t);
  const folder = temporaryFolder(t);
  const [replicated, parts] = await Promise.all(
    ([0, 3] as const).map(async (zero) => {
      const out = path.join(folder, `${zero}`);
      const options = tinyOptions("tp=2,ep=2", 2, { out, zero });
      const [{ sentBytes } = { sentBytes: 0 }] = await steps(model, options);
      const { shards: _, ...found } = await readOnDisk(out);
      return { sentBytes, found };
    }),
  );
  t.same(parts!.found, replicated!.found);
  t.ok(parts!.sentBytes !== replicated!.sentBytes, "parameters are gathered");
});

t.test("16-bit weights and their masters on other meshes", async (t) => {
  const model = await tinyModel(t);
  const folder = temporaryFolder(t);
  const out = path.join(folder, "out");
  const options = tinyOptions("dp=2,ep=2", 2, {
    out,
    dtype: "bf16",
    zero: 1,
  });
  await steps(model, options);
  const { shards: _, ...wanted } = await readOnDisk(out);
  const gathered = path.join(folder, "gathered");
  await steps(model, { ...options, out: gathered, zero: 3 });
  const { shards: __, ...same } = await readOnDisk(gathered);
  t.same(same, wanted, "sharded parameters: all bytes");
  const masters = Object.keys(wanted.optimizerState).filter((name) =>
    name.startsWith("adamw.master.")
  );
  t.equal(3 * masters.length, Object.keys(wanted.optimizerState).length);
  for (const mesh of inTurn(["ep=1", "ep=3", "dp=2,ep=4"], 3)) {
    const { shards: _, ...found } = await reload(
      out,
      mesh,
      path.join(folder, mesh),
    );
    t.same(found, wanted, `on ${mesh}: all bytes`);
  }
  const further = { ...options, steps: 3, resume: true };
  await steps(gathered, { ...further, out: gathered, zero: 3 });
  await steps(out, { ...further, mesh: meshOf("ep=4"), zero: 0 });
  const [there, here] = await Promise.all([gathered, out].map(readOnDisk));
  let [maxError, moved] = [0, 0];
  for (const name of masters) {
    const [before, same, other] = [wanted, there!, here!].map((saved) =>
      floatsOf(saved.optimizerState[name]!)
    );
    other!.forEach((x, i) => {
      maxError = Math.max(maxError, Math.abs(x - same![i]!));
      moved = Math.max(moved, Math.abs(x - before![i]!));
    });
  }
  t.ok(moved > 5e-3, `a step moves by ${moved}`);
  t.ok(maxError < 2e-3, `the step of another mesh, to ${maxError}`);
});

/**
 * Number of kills of a training, at random moments. test/disk_faults.test.ts fails a save at every kind of call.
 */
const KILLS = 2;

/** f32 weights, and 16-bit weights with sharded masters. */
const STORED = [{}, { dtype: "bf16", zero: 1 }] as const;

async function killTraining(t: Test, more: typeof STORED[number]) {
  const model = await tinyModel(t);
  const folder = temporaryFolder(t);
  const out = path.join(folder, "out");
  const random = randomNumbers(SEED >>> 0, 0);
  const below = (n: number) => Math.floor(random() * n);
  t.comment(repeatWith());
  const hasIndex = () =>
    existsSync(path.join(out, "model.safetensors.index.json"));
  let [step, unfinished, before] = [0, 0, 0];
  for (let kill = 0; kill < KILLS; kill++) {
    // Alternates between kills from outside after some steps, and during a write of the first or second checkpoint.
    const inside = kill % 2 === 1;
    const resume = hasIndex();
    // The last kill happens while a second checkpoint is written; the others at random.
    const killAt = kill === KILLS - 1 ? 40 : below(160);
    const child = spawn(process.execPath, [
      ...startedProgram("test/helpers/train_child.ts"),
      JSON.stringify({
        model,
        text: TEXT,
        out,
        mesh: "ep=2",
        steps: 1e6,
        resume,
        more,
        ...inside ? { killAt } : {},
      }),
    ], { stdio: ["ignore", "pipe", "inherit"] });
    const after = 1 + below(3), delay = below(60);
    let seen = 0;
    child.stdout.on("data", (chunk: Buffer) => {
      seen += chunk.toString().split("\n").length - 1;
      if (inside || seen < after || child.killed) return;
      setTimeout(() => child.kill("SIGKILL"), delay);
    });
    const [, signal] = await once(child, "exit") as [unknown, string | null];
    t.equal(signal, "SIGKILL", `kill ${kill + 1}`);
    if (!hasIndex()) {
      t.notOk(resume, "an existing checkpoint remains");
      before++;
      continue;
    }
    const found = await readOnDisk(out);
    t.ok(found.step >= step, `step ${found.step} after ${step}`);
    step = found.step;
    const files = await readdir(out);
    const number = String(step).padStart(8, "0");
    if (files.some((name) => name.startsWith(".") || isOther(name, number))) {
      unfinished++;
    }
  }
  t.comment(
    `${KILLS} kills up to step ${step}: ${before} before the first checkpoint, ${unfinished} while one was written`,
  );
  t.ok(unfinished > 0, "some kills happened while a checkpoint was written");
  const options = { ...more, out, resume: true, saveEvery: 1 };
  await steps(out, tinyOptions("ep=2", step + 3, options));
  const straight = path.join(folder, "straight");
  const straightOptions = { ...more, out: straight };
  await steps(model, tinyOptions("ep=2", step + 3, straightOptions));
  t.same(await contents(out), await contents(straight), "the same bytes");
}

for (const more of inTurn(STORED, STORED.length)) {
  t.test(
    "a training killed at any moment leaves a checkpoint",
    (t) => killTraining(t, more),
  );
}

/** Whether a file belongs to another step than the current one. */
function isOther(name: string, number: string): boolean {
  return /^(model|optimizer)-\d+-/.test(name) && !name.includes(`-${number}-`);
}

t.test("a process reads only tokens of its sequences", async (t) => {
  const model = await tinyModel(t);
  const folder = temporaryFolder(t);
  const text = await readFile(TEXT, "utf8");
  const out = path.join(folder, "out");
  const texts = [text.slice(0, 900), text.slice(900)];
  const several = tinyOptions("dp=2", 2, {
    out,
    data: texts.map((text) => () => [text]),
  });
  const reads: number[] = [];
  const counted = {
    ...files,
    open: async (file: string) => {
      const opened = await files.open(file);
      if (!/tokens-/.test(file)) return opened;
      return {
        ...opened,
        read: async (offset: number, length: number) => {
          reads.push(length);
          return await opened.read(offset, length);
        },
      };
    },
  };
  const run = trainCheckpoint(model, counted, several);
  for await (const { step } of run) t.ok(step > 0);
  t.same(reads, new Array(8).fill(4 * 17), "one read per sequence");
  const kept = (await readdir(out)).filter((name) => /^tokens-/.test(name));
  t.equal(kept.length, 1, "tokens are cached");
});

t.test("accumulated batches have the gradient of all their labels", async (t) => {
  const model = await tinyModel(t);
  const one = tinyOptions("ep=2", 3, { batch: 4, auxiliary: 0 });
  const two = { ...one, batch: 2, accumulate: 2 };
  const wanted = await steps(model, one);
  const out = path.join(temporaryFolder(t), "out");
  const found = await steps(model, { ...two, out });
  t.equal(found.length, wanted.length, "the same number of steps");
  for (const [i, { loss, gradientNorm, tokens, experts }] of found.entries()) {
    const other = wanted[i]!;
    t.ok(Math.abs(loss / other.loss - 1) < 1e-6, `loss ${loss}`);
    t.ok(
      Math.abs(gradientNorm / other.gradientNorm - 1) < 1e-4,
      `gradient ${gradientNorm}`,
    );
    t.equal(tokens, other.tokens);
    t.equal(experts.flat().length, other.experts.flat().length);
    t.ok(
      experts.flat().every((share, at) =>
        Math.abs(share - other.experts.flat()[at]!) < 0.02
      ),
      "choices of all batches are counted",
    );
  }
  const { step, position, settings } = await readTraining(out, files);
  t.match({ step, position, settings }, {
    step: 3,
    position: 12,
    settings: { accumulate: 2, batch: 2 },
  });
});
