/** Training what is stored in 16 bits: f32 masters, weights that are their rounding, and checkpoints of both. */
// needs: cpu

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

/** The master of a parameter: of an expert's, its part of that of all. */
function masterOf({ optimizerState }: OnDisk, name: string, kind = "adamw") {
  const expert = /\.experts\.(\d+)\./.exec(name);
  const whole = name.replace(/\.experts\.\d+\./, ".experts.{expert}.");
  const hex = optimizerState[`${kind}.master.${whole}`];
  if (hex === undefined) throw new Error(`'${name}' has no master`);
  if (!expert) return floatsOf(hex);
  const all = floatsOf(hex);
  const size = all.length / 4;
  return all.subarray(size * Number(expert[1]), size * (Number(expert[1]) + 1));
}

/** Every parameter is the rounding of its master, bit for bit; some masters are no 16-bit floats. */
function isRounded(t: Test, saved: OnDisk, stored: Half): void {
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
      const how = more.includes("--resume") ? FLAGS.slice(0, 4) : [
        ...FLAGS,
        ...["--decay", "4", "--dtype", dtype],
      ];
      await succeed([
        ...["train", tiny, ...how, "--out", out, "--steps", `${steps}`],
        ...more,
      ]);
      return await readOnDisk(out);
    };
    const one = await run("one", 4);
    isRounded(t, one, dtype);
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
    const whole = await run("whole", 4, ...on);
    isRounded(t, whole, dtype);
    let far = 0;
    for (const name of Object.keys(one.parameters)) {
      const [here, alone] = [masterOf(whole, name), masterOf(one, name)];
      here.forEach((x, i) => far = Math.max(far, Math.abs(x - alone[i]!)));
    }
    t.ok(far < 2e-3, `masters as on one rank, ${far}`);
    t.comment(repeatWith());
    const assigned = await run("assigned", 4, ...on, ...SHARDED);
    t.same(same(assigned), same(whole), "assigned, all bytes");
    await run("stopped", 2, ...on, ...SHARDED);
    await run("stopped", 4, ...on, ...SHARDED, "--resume");
    t.same(
      await contents(path.join(folder, "stopped")),
      await contents(path.join(folder, "assigned")),
      "run to run the same files, byte for byte, as without the stop",
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

t.test("what a checkpoint is stored as is kept", async (t) => {
  const folder = temporaryFolder(t);
  const tiny = await tinyModel(t);
  const at = (name: string) => path.join(folder, name);
  const dtype = "bf16";
  await steps(tiny, files, tinyOptions("ep=1", 1, { out: at("a"), dtype }));
  await steps(at("a"), files, tinyOptions("ep=2", 2, { out: at("b") }));
  t.same(await dtypesIn(at("b")), ["BF16"]);
  isRounded(t, await readOnDisk(at("b")), "bf16");
  await steps(at("b"), files, {
    ...tinyOptions("ep=2", 3, { out: at("b"), resume: true }),
  });
  t.equal((await readOnDisk(at("b"))).step, 3, "and when it goes on");
  const wide = { out: at("c"), dtype: "f32" } as const;
  await steps(at("a"), files, tinyOptions("ep=1", 1, wide));
  t.same(await dtypesIn(at("c")), ["F32"], "unless another one is asked for");
  await t.rejects(
    steps(at("a"), files, {
      ...tinyOptions("ep=1", 2, { ...wide, resume: true, dtype: "f16" }),
    }),
    { message: /'dtype' was "f32", and is "f16"/ },
  );
});

/** Least squares with weights of three inputs for each of five outputs, which are an odd number in a row. */
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

/** The masters after steps, in plain f64 arithmetic; with 16 bits alone there are none. */
function byHand(
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

/** A training of `line` and what it leaves. */
async function trained(
  t: Test,
  count: number,
  how: { readonly rate: number; readonly optimizer: Optimizer; dtype: Half },
) {
  const out = path.join(temporaryFolder(t), "out");
  const { rate, optimizer, dtype } = how;
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
    // At the rate 0 the master stays as it was first: f32, and not rounded.
    const start = await trained(t, 1, { rate: 0, optimizer, dtype });
    const first = [...masterOf(start, "w")];
    const how = { rate: 0.01, optimizer, dtype };
    const saved = await trained(t, 12, how);
    isRounded(t, saved, dtype);
    const master = masterOf(saved, "w");
    const wanted = byHand(first, 12, { rate: 0.01, stored: dtype });
    const off = Math.max(...wanted.map((x, i) => Math.abs(x - master[i]!)));
    t.ok(off < 1e-5, `off by ${off}`);
  });
}

t.test("what 16 bits lose adds up in the master", async (t) => {
  const optimizer = adamw({ betas: [0.9, 0.95], weightDecay: 0.1 });
  const how = { rate: 2e-5, optimizer, dtype: "bf16" } as const;
  const first = await trained(t, 1, { ...how, rate: 0 });
  const saved = await trained(t, 300, how);
  const start = [...masterOf(first, "w")];
  const alone = byHand(start, 300, {
    rate: how.rate,
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
    t.equal(alone[i], x, "a step of 2e-5 rounds to nothing");
    t.ok(after[i] !== x, `with a master ${x} became ${after[i]}`);
  }
});

t.test("one step, to the last bit", async (t) => {
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
  // Below 1, bf16 counts in steps of 2^-8; the middle of the first goes to 1, which is even.
  const one = Array(8).fill([0x3f80, 0x3f80, 0x3f80]);
  t.same(found, [...one, ...Array(2).fill([0x3f7f, 0x3f7f, 0x3f7f])]);
});

t.test("memory is what the plan says", async (t) => {
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
    // 8 experts of 5 rows of 6, which are stored in 16 bits padded to 8; their masters whole or over two ranks.
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

t.test("the plan of a step says it", async (t) => {
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

t.test("weights that 16 bits have no number for", async (t) => {
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
