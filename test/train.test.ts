/** Training from outside: loss that falls, checkpoints that others read, runs that go on as if they had not been stopped. */

import { spawn } from "node:child_process";
import { once } from "node:events";
import { cp, mkdir, readdir, readFile, writeFile } from "node:fs/promises";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import t, { type Test } from "tap";
import {
  adamW,
  randomNumbers,
  rateAt,
  readTraining,
  type StepMetrics,
  train,
  type TrainOptions,
} from "../engine/mod.ts";
import { compileTraining } from "../compiler/mod.ts";
import {
  readParameters,
  rememberedStates,
} from "../engine/train/parameters.ts";
import { loadTraining, type SavedTraining } from "../engine/train/saved.ts";
import { publishedModel } from "../models/mod.ts";
import { createCpuDevice } from "../runtime/cpu/mod.ts";
import { createSession, tensorsInMemory } from "../runtime/mod.ts";
import { checkpointFolder, files, meshOf } from "./helpers/checkpoints.ts";
import { readRaw, switchyard, temporaryFolder } from "./helpers/cli.ts";
import { repeatWith, SEED } from "./helpers/seed.ts";

const ENTRY = fileURLToPath(new URL("../bin/switchyard.mjs", import.meta.url));

/** Some prose. */
const TEXT = fileURLToPath(
  new URL("../examples/demo-lm/README.md", import.meta.url),
);

/** What a small OLMoE has otherwise than the demo. */
const SIZES = {
  ...{ hidden_size: 32, intermediate_size: 24, num_hidden_layers: 2 },
  ...{ num_experts: 4, num_attention_heads: 2, num_key_value_heads: 2 },
};

async function tinyConfig(): Promise<{ readonly [key: string]: unknown }> {
  const demo = path.join(checkpointFolder("demo-lm"), "config.json");
  return { ...JSON.parse(await readFile(demo, "utf8")) as object, ...SIZES };
}

/** A folder with a small OLMoE of the demo's vocabulary and no weights. */
async function tinyModel(t: Test): Promise<string> {
  const folder = path.join(temporaryFolder(t), "tiny");
  await mkdir(folder);
  await writeFile(
    path.join(folder, "config.json"),
    JSON.stringify(await tinyConfig()),
  );
  const demo = checkpointFolder("demo-lm");
  for (const name of ["tokenizer.json", "tokenizer_config.json"]) {
    await cp(path.join(demo, name), path.join(folder, name));
  }
  return folder;
}

/** The flags of a short training. */
const FLAGS = [
  ...["--adapter", "cpu", "--batch", "4", "--length", "32"],
  ...["--lr", "0.01", "--warmup", "2", "--decay", "8"],
];

/** What continues a training takes no settings. */
const RESUME = ["--resume", "--adapter", "cpu"];

/** The text to train on. */
const ON_TEXT = ["--data", TEXT];

/** Run a command that must succeed. */
async function succeed(argv: readonly string[]): Promise<string> {
  const { code, out, err } = await switchyard(argv);
  if (code !== 0) throw new Error(`exit code ${code}: ${err}`);
  return out;
}

/** The files of a folder by name, in hexadecimal digits. */
async function contents(folder: string): Promise<{ [name: string]: string }> {
  const found: { [name: string]: string } = {};
  for (const name of (await readdir(folder)).sort()) {
    found[name] = (await readFile(path.join(folder, name))).toString("hex");
  }
  return found;
}

t.test("training, stopping and going on", async (t) => {
  const model = await tinyModel(t);
  const folder = temporaryFolder(t);
  const [straight, stopped] = ["straight", "stopped"].map((name) =>
    path.join(folder, name)
  ) as [string, string];

  const out = await succeed([
    ...["train", model, ...ON_TEXT, ...FLAGS, "--out", straight],
    ...["--steps", "8", "--json"],
  ]);
  const metrics = out.trim().split("\n").map((line) =>
    JSON.parse(line) as {
      readonly step: number;
      readonly ce_loss: number;
      readonly tokens: number;
      readonly expert_load: readonly (readonly number[])[];
    }
  );
  t.same(metrics.map(({ step }) => step), [1, 2, 3, 4, 5, 6, 7, 8]);
  const losses = metrics.map(({ ce_loss }) => ce_loss);
  t.ok(
    Math.abs(losses[0]! - Math.log(2048)) < 0.1,
    `random weights know nothing: ${losses[0]}`,
  );
  t.ok(losses[7]! < losses[0]! - 0.3, `losses ${losses}`);
  for (const { expert_load } of metrics) {
    t.same(
      expert_load.map((layer) =>
        Math.round(1e6 * layer.reduce((n, share) => n + share, 0))
      ),
      [1e6, 1e6],
      "all choices are counted, in both layers",
    );
  }

  await succeed([
    "train",
    model,
    ...ON_TEXT,
    ...FLAGS,
    "--out",
    stopped,
    "--steps",
    "3",
  ]);
  const before = await contents(stopped);
  await succeed([
    "train",
    model,
    ...ON_TEXT,
    ...RESUME,
    "--out",
    stopped,
    "--steps",
    "8",
  ]);
  t.not(before, await contents(stopped));
  t.same(
    await contents(stopped),
    await contents(straight),
    "the same files, byte for byte, as without the stop",
  );

  const text = await succeed([
    ...["generate", straight, "--prompt", "the", "--max-new-tokens", "4"],
    ...["--adapter", "cpu", "--json"],
  ]);
  t.match(JSON.parse(text), {
    sequences: [{ tokens: [Number, Number, Number, Number] }],
  }, "'generate' reads it");

  const packed = path.join(folder, "text.gz");
  await writeFile(packed, gzipSync(await readFile(TEXT)));
  const again = await succeed([
    ...["train", model, ...FLAGS, "--data", packed],
    ...["--out", path.join(folder, "packed"), "--steps", "1", "--json"],
  ]);
  t.same(
    (JSON.parse(again) as { readonly ce_loss: number }).ce_loss,
    losses[0],
    "packed text is the same text",
  );
});

t.test("what cannot be gone on with", async (t) => {
  const model = await tinyModel(t);
  const out = path.join(temporaryFolder(t), "out");
  const first = [
    "train",
    model,
    ...ON_TEXT,
    ...FLAGS,
    "--out",
    out,
    "--steps",
    "1",
  ];
  const resume = [
    "train",
    model,
    ...ON_TEXT,
    ...RESUME,
    "--out",
    out,
    "--steps",
    "2",
  ];
  t.match(await switchyard(resume), {
    code: 1,
    err: /no training was saved there\. Start one without --resume/,
  });
  await succeed(first);
  t.match(await switchyard(first), {
    code: 1,
    err: /has a checkpoint already\. Go on with it \(--resume\)/,
  });
  t.match(await switchyard([...resume, "--lr", "1"]), {
    code: 2,
    err: /Cannot use --lr with --resume/,
  });
  const other = path.join(path.dirname(out), "other.txt");
  await writeFile(other, "A fox and a crow. ".repeat(100));
  t.match(await switchyard([...resume, "--data", other]), {
    code: 1,
    err: /its text was another one\. Give the same --data/,
  });
  const optimizer = path.join(out, "optimizer-00000001.safetensors");
  const bytes = await readFile(optimizer);
  bytes[bytes.length - 1]! ^= 1;
  await writeFile(optimizer, bytes);
  t.match(await switchyard(resume), {
    code: 1,
    err: /tensor 'adamw\.\S+' is not what was saved/,
  });
  await writeFile(other, "short");
  t.match(
    await switchyard([
      ...["train", model, ...FLAGS, "--data", other, "--steps", "1"],
      ...["--out", path.join(path.dirname(out), "short")],
    ]),
    { code: 1, err: /one sequence takes 33\. Give more text or shorter/ },
  );
});

/** Options of a training in this process. */
function options(text: string, mesh: string): TrainOptions {
  return {
    ...{ data: [text], steps: 3, batch: 4, length: 16 },
    ...{ sharing: "shared", adapter: "cpu", mesh: meshOf(mesh) },
    optimizer: adamW({ betas: [0.9, 0.95] }),
    schedule: { rate: 0.01 },
    statistics: true,
    now: () => performance.now(),
  };
}

t.test("a checkpoint on other meshes", async (t) => {
  const text = await readFile(TEXT, "utf8");
  const model = await tinyModel(t);
  const folder = temporaryFolder(t);
  const run = async (name: string, mesh: string, steps: number) => {
    const out = path.join(folder, name);
    const found: StepMetrics[] = [];
    const from = { ...options(text, mesh), steps, out };
    for await (const step of train(model, files, from)) found.push(step);
    return found;
  };
  const alone = await run("ep1", "ep=1", 3);
  const spread = await run("ep2", "ep=2", 3);
  t.ok(spread.every(({ sentBytes }) => sentBytes > 0), "ranks exchange");
  for (const [i, { loss, gradientNorm }] of spread.entries()) {
    t.ok(Math.abs(loss / alone[i]!.loss - 1) < 1e-5, `loss ${loss}`);
    t.ok(
      Math.abs(gradientNorm / alone[i]!.gradientNorm - 1) < 1e-4,
      `gradient ${gradientNorm}`,
    );
  }
  const saved = await loadTraining(path.join(folder, "ep2"), files);
  for (const mesh of ["ep=1", "ep=3", "ep=4", "dp=2,ep=2"]) {
    t.same(
      await throughRanks(saved, mesh),
      { parameters: saved.parameters, remembered: saved.remembered },
      `loaded on ${mesh}, all tensors are exactly what was saved`,
    );
  }
});

/** What is read of the ranks of a mesh that a training was loaded on. */
async function throughRanks(
  { parameters, remembered, settings }: SavedTraining,
  mesh: string,
) {
  const { batch, length, optimizer } = settings;
  const config = await tinyConfig();
  const bounds = { maxTokens: batch * length, maxSequences: batch };
  const plan = await compileTraining(
    publishedModel(config).build({
      ...{ ...bounds, maxContext: length, training: { auxiliary: 0.01 } },
    }),
    {
      ...{ loss: "loss", optimizer },
      mesh: Object.fromEntries(
        meshOf(mesh).map(({ name, size }) => [name, size]),
      ),
    },
  );
  const device = await createCpuDevice();
  const session = await createSession(plan, {
    devices: Array.from({ length: plan.ranks }, () => device),
    tensors: tensorsInMemory(parameters, "memory"),
  });
  try {
    session.write(remembered);
    return {
      parameters: await readParameters(plan, session),
      remembered: await session.read(rememberedStates(plan, optimizer)),
    };
  } finally {
    session.close();
  }
}

t.test("killed at any moment, a training leaves a checkpoint", async (t) => {
  const model = await tinyModel(t);
  const out = path.join(temporaryFolder(t), "out");
  const random = randomNumbers(SEED >>> 0, 0);
  t.comment(repeatWith());
  const steps = 30;
  const begin = ["train", model, ...ON_TEXT, ...FLAGS, "--save-every", "1"];
  const straight = path.join(path.dirname(out), "straight");
  await succeed([...begin, "--out", straight, "--steps", String(steps)]);
  let kills = 0;
  for (let done = false; !done;) {
    const saved = (await readdir(path.dirname(out))).includes("out") &&
      (await readdir(out)).includes("model.safetensors.index.json");
    const argv = saved
      ? ["train", model, ...ON_TEXT, ...RESUME, "--save-every", "1"]
      : begin;
    const child = spawn(process.execPath, [
      ...[ENTRY, ...argv, "--out", out, "--steps", String(steps), "--json"],
    ], { stdio: ["ignore", "pipe", "inherit"] });
    // After a few steps, at some moment of a step or of writing.
    const after = 3 + Math.floor(random() * 8);
    let seen = 0;
    child.stdout.on("data", (chunk: Buffer) => {
      seen += chunk.toString().split("\n").length - 1;
      if (seen >= after && !child.killed) {
        setTimeout(() => child.kill("SIGKILL"), random() * 60);
      }
    });
    const [code] = await once(child, "exit") as [number | null];
    done = code === 0;
    if (!done) {
      kills++;
      t.equal(code, null, "it was killed");
    }
    await readTraining(out, files);
    const { weight_map } = readIndex(
      await readFile(path.join(out, "model.safetensors.index.json"), "utf8"),
    );
    for (const shard of new Set(Object.values(weight_map))) {
      await readRaw(path.join(out, shard));
    }
  }
  t.ok(kills >= 2, `killed ${kills} times`);
  t.same(await contents(out), await contents(straight), "the same bytes");
});

function readIndex(text: string): {
  readonly weight_map: { readonly [tensor: string]: string };
} {
  return JSON.parse(text) as ReturnType<typeof readIndex>;
}

t.test("learning rates", (t) => {
  const schedule = { rate: 2, warmup: 4, decay: 12, floor: 0.25 };
  t.same([1, 2, 4, 8, 12, 20].map((step) => rateAt(schedule, step)), [
    ...[0.5, 1, 2, 1.25, 0.5, 0.5],
  ]);
  t.equal(rateAt({ rate: 3 }, 1e6), 3);
  t.end();
});
