/** Training of 16-bit weights: f32 masters, rounded weights, and checkpoints of both. */
// needs: cpu
// rotates with: engine/train/, compiler/graph/optimizers.ts

import { readdir, readFile } from "node:fs/promises";
import path from "node:path";
import t, { type Test } from "tap";
import {
  adamw,
  compileTraining,
  dot,
  mean,
  model,
  mul,
  type Optimizer,
  sgd,
  sub,
  sum,
  train,
} from "../compiler/mod.ts";
import { runTraining, trainCheckpoint } from "../engine/mod.ts";
import { createCpuDevice } from "../runtime/cpu/mod.ts";
import { createSession, tensorsInMemory } from "../runtime/mod.ts";
import { onRank, parsePlan, verifyPlan } from "../spec/mod.ts";
import { files } from "./helpers/checkpoints.ts";
import { readRaw, switchyard, temporaryFolder } from "./helpers/cli.ts";
import { halves, nearest } from "./helpers/halves.ts";
import { inTurn, repeatWith } from "./helpers/seed.ts";
import { layer } from "./helpers/training_layer.ts";
import {
  contents,
  floatsOf,
  type OnDisk,
  readOnDisk,
  TEXT,
  tinyModel,
  tinyOptions,
} from "./helpers/tiny_training.ts";

type Half = "f16" | "bf16";

const FLAGS = [
  ...["--data", TEXT, "--adapter", "cpu", "--batch", "4", "--length", "16"],
  ...["--lr", "0.01", "--warmup", "2"],
];

async function succeed(argv: readonly string[]): Promise<string> {
  const { code, out, err } = await switchyard(argv);
  if (code !== 0) throw new Error(`exit code ${code}: ${err}`);
  return out;
}

function bitsOf(hex: string): Uint16Array {
  const bytes = Uint8Array.from(Buffer.from(hex, "hex"));
  return new Uint16Array(bytes.buffer);
}

/** Returns the master of a parameter; for an expert, its slice of the stacked master. */
function masterOf({ optimizerState }: OnDisk, name: string, kind = "adamw") {
  const expert = /\.experts\.(\d+)\./.exec(name);
  const stacked = name.replace(/\.experts\.\d+\./, ".experts.{expert}.");
  const hex = optimizerState[`${kind}.master.${stacked}`];
  if (hex === undefined) throw new Error(`'${name}' has no master`);
  if (!expert) return floatsOf(hex);
  const all = floatsOf(hex);
  const size = all.length / 4;
  return all.subarray(size * Number(expert[1]), size * (Number(expert[1]) + 1));
}

/** Checks that every parameter is its rounded master, and that masters have more precision. */
function checkRounded(t: Test, saved: OnDisk, stored: Half): void {
  const values = halves(stored);
  let [elements, wrong, inexact] = [0, 0, 0];
  for (const [name, hex] of Object.entries(saved.parameters)) {
    const [found, master] = [bitsOf(hex), masterOf(saved, name)];
    if (found.length !== master.length) throw new Error(`${name} is too short`);
    elements += found.length;
    found.forEach((bits, i) => {
      if (bits !== nearest(values, master[i]!)) wrong++;
      if (values[bits & 0x7fff] !== Math.abs(master[i]!)) inexact++;
    });
  }
  t.equal(wrong, 0, `of ${elements} elements`);
  t.ok(inexact > elements / 2, `${inexact} masters have more digits`);
}

async function dtypesIn(folder: string): Promise<string[]> {
  const found = new Set<string>();
  for (const name of await readdir(folder)) {
    if (!/^model-.*\.safetensors$/.test(name)) continue;
    for (const { dtype } of Object.values(await readRaw(`${folder}/${name}`))) {
      found.add(dtype);
    }
  }
  return [...found];
}

for (const dtype of inTurn(["bf16", "f16"] as const, 2)) {
  t.test(`from the command line, in ${dtype}`, async (t) => {
    const folder = temporaryFolder(t);
    const tiny = await tinyModel(t);
    const run = async (name: string, steps: number, ...more: string[]) => {
      const out = path.join(folder, name);
      const options = more.includes("--resume") ? FLAGS.slice(0, 4) : [
        ...FLAGS,
        ...["--decay", "4", "--dtype", dtype],
      ];
      await succeed([
        ...["train", tiny, ...options, "--out", out, "--steps", `${steps}`],
        ...more,
      ]);
      return await readOnDisk(out);
    };
    const one = await run("one", 4);
    checkRounded(t, one, dtype);
    t.same(await dtypesIn(path.join(folder, "one")), [dtype.toUpperCase()]);
    const config = await readFile(path.join(folder, "one/config.json"), "utf8");
    t.match(config, dtype === "bf16" ? /"bfloat16"/ : /"float16"/);
    const text = await succeed([
      ...["generate", path.join(folder, "one"), "--prompt", "the"],
      ...["--max-new-tokens", "3", "--adapter", "cpu", "--json"],
    ]);
    t.match(JSON.parse(text), {
      sequences: [{ tokens: [Number, Number, Number] }],
    }, "'generate' reads it");

    const on = ["--mesh", "dp=2,ep=2"];
    const replicated = await run("whole", 4, ...on);
    checkRounded(t, replicated, dtype);
    let maxError = 0;
    for (const name of Object.keys(one.parameters)) {
      const [here, alone] = [masterOf(replicated, name), masterOf(one, name)];
      here.forEach((x, i) =>
        maxError = Math.max(maxError, Math.abs(x - alone[i]!))
      );
    }
    t.ok(maxError < 2e-3, `masters close to those of one rank, ${maxError}`);
    t.comment(repeatWith());
    const assigned = await run("assigned", 4, ...on, ...SHARDED);
    t.same(same(assigned), same(replicated), "sharded: all bytes");
    await run("stopped", 2, ...on, ...SHARDED);
    await run("stopped", 4, ...on, ...SHARDED, "--resume");
    t.same(
      await contents(path.join(folder, "stopped")),
      await contents(path.join(folder, "assigned")),
      "the same bytes as without the interruption",
    );
  });
}

const SHARDED = ["--zero", "1"];

function same({ parameters, optimizerState }: OnDisk) {
  return { parameters, optimizerState };
}

async function steps(...args: Parameters<typeof trainCheckpoint>) {
  let taken = 0;
  for await (const { step } of trainCheckpoint(...args)) taken = step;
  return taken;
}

t.test("the dtype of a checkpoint is kept", async (t) => {
  const folder = temporaryFolder(t);
  const tiny = await tinyModel(t);
  const at = (name: string) => path.join(folder, name);
  const dtype = "bf16";
  await steps(tiny, files, tinyOptions("ep=1", 1, { out: at("a"), dtype }));
  await steps(at("a"), files, tinyOptions("ep=2", 2, { out: at("b") }));
  t.same(await dtypesIn(at("b")), ["BF16"]);
  checkRounded(t, await readOnDisk(at("b")), "bf16");
  await steps(at("b"), files, {
    ...tinyOptions("ep=2", 3, { out: at("b"), resume: true }),
  });
  t.equal((await readOnDisk(at("b"))).step, 3, "also when resumed");
  const wide = { out: at("c"), dtype: "f32" } as const;
  await steps(at("a"), files, tinyOptions("ep=1", 1, wide));
  t.same(await dtypesIn(at("c")), ["F32"], "another dtype on request");
  await t.rejects(
    steps(at("a"), files, {
      ...tinyOptions("ep=1", 2, { ...wide, resume: true, dtype: "f16" }),
    }),
    { message: /'dtype' was "f32", and is "f16"/ },
  );
});

/** Least squares with weights from three inputs to five outputs, an odd number per row. */
const [ROWS, INPUTS, OUTPUTS] = [4, 3, 5];
const line = model({ row: ROWS, input: INPUTS, output: OUTPUTS }, (m) => {
  const x = m.input("x", "row input");
  const y = dot(x, m.param("w", "input output"), "input");
  const miss = sub(y, m.input("wanted", "row output"));
  return { loss: mean(sum(mul(miss, miss), "output"), "row") };
});
const X = Array.from({ length: ROWS * INPUTS }, (_, i) => Math.sin(3 * i + 1));
const WANTED = Array.from({ length: ROWS * OUTPUTS }, (_, i) => Math.cos(i));

function tensor(shape: readonly number[], values: readonly number[]) {
  return { dtype: "f32" as const, shape, data: Float32Array.from(values) };
}

/** Masters after some steps, in f64; without masters, the 16-bit weights. */
function expectedWeights(
  first: readonly number[],
  count: number,
  { rate, stored, masters = true }: {
    readonly rate: number;
    readonly stored: Half;
    readonly masters?: boolean;
  },
): number[] {
  const values = halves(stored);
  const round = (x: number) => {
    const bits = nearest(values, x);
    return (bits & 0x8000 ? -1 : 1) * values[bits & 0x7fff]!;
  };
  const [b1, b2, decay] = [0.9, 0.95, 0.1];
  let master = [...first];
  const [m, v] = [first.map(() => 0), first.map(() => 0)];
  for (let step = 1; step <= count; step++) {
    const w = master.map(round);
    const gradient = w.map((_, at) => {
      const [i, o] = [Math.floor(at / OUTPUTS), at % OUTPUTS];
      let g = 0;
      for (let row = 0; row < ROWS; row++) {
        let miss = -WANTED[row * OUTPUTS + o]!;
        for (let k = 0; k < INPUTS; k++) {
          miss += X[row * INPUTS + k]! * w[k * OUTPUTS + o]!;
        }
        g += 2 * miss * X[row * INPUTS + i]! / ROWS;
      }
      return g;
    });
    master = (masters ? master : w).map((p, at) => {
      const g = gradient[at]!;
      m[at] = b1 * m[at]! + (1 - b1) * g;
      v[at] = b2 * v[at]! + (1 - b2) * g * g;
      const root = Math.sqrt(v[at]! / (1 - b2 ** step)) + 1e-8;
      return p - rate * decay * p - rate * m[at]! / (1 - b1 ** step) / root;
    });
  }
  return masters ? master : master.map(round);
}

/** Trains `line`; returns the saved files. */
async function trained(
  t: Test,
  count: number,
  options: {
    readonly rate: number;
    readonly optimizer: Optimizer;
    dtype: Half;
  },
) {
  const out = path.join(temporaryFolder(t), "out");
  const { rate, optimizer, dtype } = options;
  const training = train(line, {
    optimizer,
    dtype,
    schedule: { rate },
    deviation: 0.5,
    data: () => ({
      x: tensor([ROWS, INPUTS], X),
      wanted: tensor([ROWS, OUTPUTS], WANTED),
    }),
  });
  const run = runTraining(training, files, {
    steps: count,
    out,
    sharing: "shared",
    adapter: "cpu",
    now: () => 0,
  });
  for await (const { step } of run) t.ok(step > 0);
  return await readOnDisk(out);
}

for (const dtype of ["bf16", "f16"] as const) {
  t.test(`AdamW by hand, in ${dtype}`, async (t) => {
    const optimizer = adamw({ betas: [0.9, 0.95], weightDecay: 0.1 });
    // With a rate of 0, the master keeps its initial f32 value.
    const start = await trained(t, 1, { rate: 0, optimizer, dtype });
    const first = [...masterOf(start, "w")];
    const options = { rate: 0.01, optimizer, dtype };
    const saved = await trained(t, 12, options);
    checkRounded(t, saved, dtype);
    const master = masterOf(saved, "w");
    const wanted = expectedWeights(first, 12, { rate: 0.01, stored: dtype });
    const off = Math.max(...wanted.map((x, i) => Math.abs(x - master[i]!)));
    t.ok(off < 1e-5, `off by ${off}`);
  });
}

t.test("the master accumulates steps that 16 bits lose", async (t) => {
  const optimizer = adamw({ betas: [0.9, 0.95], weightDecay: 0.1 });
  const options = { rate: 2e-5, optimizer, dtype: "bf16" } as const;
  const first = await trained(t, 1, { ...options, rate: 0 });
  const saved = await trained(t, 300, options);
  const start = [...masterOf(first, "w")];
  const alone = expectedWeights(start, 300, {
    rate: options.rate,
    stored: "bf16",
    masters: false,
  });
  const values = halves("bf16");
  const value = (bits: number) =>
    (bits & 0x8000 ? -1 : 1) * values[bits & 0x7fff]!;
  const before = [...bitsOf(first.parameters["w"]!)].map(value);
  const after = [...bitsOf(saved.parameters["w"]!)].map(value);
  const large = before.map((x, i) => ({ x, i })).filter(({ x }) =>
    Math.abs(x) > 0.25
  );
  t.ok(large.length >= 3, `${large.length} weights have steps above 2^-9`);
  for (const { x, i } of large) {
    t.equal(alone[i], x, "a step of 2e-5 is lost in rounding");
    t.ok(after[i] !== x, `with a master, ${x} became ${after[i]}`);
  }
});

t.test("exact bits of steps", async (t) => {
  const ones = model({ row: 2, input: 3 }, (m) => ({
    loss: sum(
      mean(
        mul(m.input("x", "row input"), m.param("w", "input")),
        "row",
      ),
      "input",
    ),
  }));
  const out = path.join(temporaryFolder(t), "out");
  const rate = 2 ** -12;
  const training = train(ones, {
    optimizer: sgd({ momentum: 0 }),
    dtype: "bf16",
    schedule: { rate },
    data: () => ({ x: tensor([2, 3], [1, 1, 1, 1, 1, 1]) }),
  });
  const found: number[][] = [];
  for (let count = 1; count <= 10; count++) {
    const run = runTraining(training, files, {
      steps: count,
      out,
      resume: count > 1,
      sharing: "shared",
      adapter: "cpu",
      now: () => 0,
    });
    for await (const { step } of run) t.equal(step, count);
    const saved = await readOnDisk(out);
    t.same([...masterOf(saved, "w", "sgd")], Array(3).fill(1 - count * rate));
    found.push([...bitsOf(saved.parameters["w"]!)]);
  }
  // Below 1, bf16 has steps of 2^-8; the middle of the first rounds to 1, which is even.
  const one = Array(8).fill([0x3f80, 0x3f80, 0x3f80]);
  t.same(found, [...one, ...Array(2).fill([0x3f7f, 0x3f7f, 0x3f7f])]);
});

t.test("a batch whose values are not tensors is rejected", async (t) => {
  const squares = model({ n: 2 }, (m) => ({
    loss: sum(mul(m.input("x", "n"), m.param("w", "n")), "n"),
  }));
  const training = train(squares, {
    optimizer: sgd(),
    schedule: { rate: 0.1 },
    data: () => ({ x: new Float32Array(2) as never }),
  });
  const run = runTraining(training, files, {
    steps: 1,
    sharing: "shared",
    adapter: "cpu",
    now: () => 0,
  });
  await t.rejects(run.next(), {
    name: "DataError",
    message:
      "Cannot train on batch 1 of 'data': the input 'x' is a Float32Array, not { dtype, shape, data }. Give it with its dtype and shape",
  });
});

t.test("memory matches the plan", async (t) => {
  const optimizer = adamw();
  for (const zero of [0, 1] as const) {
    const plan = await compileTraining(layer("mixtral", 2), {
      loss: "loss",
      optimizer,
      clipNorm: 1,
      dtype: "bf16",
      mesh: { dp: 2, ep: 2 },
      zero,
    });
    t.same(verifyPlan(plan), []);
    const bytesOf = (name: string) =>
      Array.from(
        { length: 4 },
        (_, rank) => onRank(plan.buffers[name]!.bytes, rank),
      );
    // 8 experts with 5 rows of 6, in 16 bits padded to 8; masters replicated, or sharded over two ranks.
    t.same(bytesOf("down.{expert}"), Array(4).fill(4 * 5 * 8 * 2));
    const part = zero === 1 ? 2 : 1;
    for (const state of ["adamw.master", "adamw.mean"]) {
      t.same(
        bytesOf(`${state}.down.{expert}`),
        Array(4).fill(4 * 5 * 6 * 4 / part),
      );
    }
    const device = await createCpuDevice();
    const zeros = Object.fromEntries(
      plan.weights.flatMap(({ source, shape, stack }) =>
        Array.from({ length: stack === undefined ? 1 : 8 }, (_, i) => [
          source.replace("{expert}", String(i)),
          {
            dtype: "bf16" as const,
            shape,
            data: new Uint16Array(shape.reduce((n, size) => n * size, 1)),
          },
        ])
      ),
    );
    const session = await createSession(plan, {
      devices: Array(4).fill(device),
      statistics: true,
      tensors: tensorsInMemory(zeros, "zeros"),
    });
    for (const { rank, peakBytes } of session.statistics().ranks) {
      t.equal(peakBytes.actual, onRank(plan.peakBytes, rank));
    }
    device.destroy();
  }
});

t.test("the plan of a step states dtypes of weights and masters", async (t) => {
  const tiny = await tinyModel(t);
  const plan = async (...more: string[]) => {
    const { code, out } = await switchyard([
      ...["plan", tiny, "--train", "--max-tokens", "64", "--json"],
      ...["--full", ...more],
    ]);
    t.equal(code, 0);
    return parsePlan(out);
  };
  const [wide, narrow] = [await plan(), await plan("--dtype", "bf16")];
  const embed = "model.embed_tokens.weight";
  t.equal(wide.buffers[embed]!.dtype, "f32");
  t.notOk(`adamw.master.${embed}` in wide.buffers);
  t.equal(narrow.buffers[embed]!.dtype, "bf16");
  t.equal(narrow.buffers[`adamw.master.${embed}`]!.dtype, "f32");
  t.match(await switchyard(["plan", tiny, "--train", "--dtype", "fp8"]), {
    code: 2,
    err: /Cannot train in fp8: .*Give --dtype f32, f16 or bf16/,
  });
});

t.test("weights that 16 bits cannot represent", async (t) => {
  const training = train(line, {
    optimizer: sgd(),
    dtype: "f16",
    schedule: { rate: 0 },
    deviation: 1e6,
    data: () => ({
      x: tensor([ROWS, INPUTS], X),
      wanted: tensor([ROWS, OUTPUTS], WANTED),
    }),
  });
  const run = runTraining(training, files, {
    steps: 1,
    sharing: "shared",
    adapter: "cpu",
    now: () => 0,
  });
  await t.rejects(run.next(), {
    message:
      /Cannot train 'w' in f16: its element \d+ is -?\d+.*, which f16 has no number for\. Train it in another dtype/,
  });
});
