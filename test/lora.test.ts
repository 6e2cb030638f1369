/** Low-rank adapters: gradients, training on meshes, PEFT's layout, and merging. */
// needs: cpu
// rotates with: engine/lora/, compiler/graph/adapters.ts

import { readdirSync } from "node:fs";
import { copyFile, mkdir, readFile, writeFile } from "node:fs/promises";
import path from "node:path";
import { isDeepStrictEqual } from "node:util";
import t from "tap";
import {
  add,
  combine,
  dispatch,
  dot,
  model,
  mul,
  rmsNorm,
  route,
  sum,
  swiglu,
  upTo,
} from "../compiler/dsl/mod.ts";
import {
  adamw,
  compileTraining,
  type Model,
  withAdapters,
} from "../compiler/mod.ts";
import type { FileSystem } from "../engine/files.ts";
import { mergeLora, readLora } from "../engine/lora/mod.ts";
import { publishedModel } from "../models/published.ts";
import { withTensors } from "../engine/checkpoint/tensors.ts";
import { bytesOf, readTensor, type TensorEntry } from "../runtime/mod.ts";
import { MachineError } from "../spec/errors.ts";
import { PACKED_ELEMENTS } from "../spec/weights/packed.ts";
import { checkpointFolder, files } from "./helpers/checkpoints.ts";
import { cpuMachine } from "./helpers/cpu_machine.ts";
import { openTrained, takeSteps, weightsOf } from "./helpers/on_policy.ts";
import {
  copyCheckpoint,
  type RawTensor,
  readRaw,
  switchyard,
  temporaryFolder,
  writeRaw,
} from "./helpers/cli.ts";
import { gradientsHold, graphWithGradients } from "./helpers/gradients.ts";
import { readJson, readTensors } from "./helpers/read_tensors.ts";
import { closeDevices, matches } from "./helpers/run_model.ts";
import { TEXT, tinyConfig, tinyModel } from "./helpers/tiny_training.ts";
import { inTurn } from "./helpers/seed.ts";

t.teardown(closeDevices);

/** Copies demo-lm in f32, so that merging rounds as little as possible. */
async function wideDemo(folder: string): Promise<string> {
  const wide = await copyCheckpoint("demo-lm", folder);
  const file = path.join(wide, "model.safetensors");
  const tensors = Object.entries(await readRaw(file)).map(
    ([name, { shape, data }]) => {
      const halves = new Uint16Array(Uint8Array.from(data).buffer);
      const words = Uint32Array.from(halves, (half) => half << 16);
      const bytes = new Uint8Array(words.buffer);
      return [name, { dtype: "F32", shape, data: bytes }];
    },
  );
  await writeRaw(file, Object.fromEntries(tensors));
  return wide;
}

/** Reads the adapters of a training. */
async function adaptersIn(folder: string) {
  const file = path.join(folder, "adapter_model.safetensors");
  return { raw: await readRaw(file), values: readTensors(file) };
}

/** The only weight file of a training or a merged checkpoint. */
function weightsFile(folder: string): string {
  const [file] = readdirSync(folder).filter((name) =>
    /^model-?.*\.safetensors$/.test(name)
  );
  return path.join(folder, file!);
}

type Numbers = { readonly [name: string]: ArrayLike<number> };

/** Max difference, relative to the largest value of the tensor. */
function maxError(found: Numbers, wanted: Numbers): number {
  return Math.max(
    ...Object.entries(wanted).map(([name, tensor]) => {
      const values = Array.from(tensor);
      const largest = Math.max(...values.map(Math.abs));
      const errors = values.map((x, i) => Math.abs(x - found[name]![i]!));
      return Math.max(...errors) / (largest || 1);
    }),
  );
}

/** A layer with experts and a projection; its loss is the sum of squares of its outputs. */
const layer = model(
  { token: upTo(9), embed: 6, ffn: 5, expert: 4 },
  (m) => {
    const x = m.input("x", "token embed");
    const router = m.param("router.weight", "expert embed");
    const rows = rmsNorm(x, m.param("norm.weight", "embed"), "embed");
    const routing = route(dot(rows, router, "embed"), {
      over: "expert",
      topK: 2,
      preset: "mixtral",
    });
    const sent = dispatch(rows, routing);
    const gate = m.param(
      "experts.{expert}.gate_proj.weight",
      "expert ffn embed",
    );
    const up = m.param("experts.{expert}.up_proj.weight", "expert ffn embed");
    const down = m.param(
      "experts.{expert}.down_proj.weight",
      "expert embed ffn",
    );
    const hidden = swiglu(dot(sent, gate, "embed"), dot(sent, up, "embed"));
    const y = add(x, combine(dot(hidden, down, "ffn"), routing));
    const squares = sum(sum(mul(y, y), "embed"), "token");
    return { loss: squares };
  },
);

const adapters = {
  rank: 3,
  scale: 0.5,
  adapts: (name: string) => /\.(gate|up|down)_proj\./.test(name),
};

t.test("gradients of adapters match finite differences and kernels", async (t) => {
  const adapted = withAdapters(layer, adapters) as Model;
  const graph = await graphWithGradients(adapted);
  const params = Object.fromEntries(
    graph.nodes.flatMap((node) => {
      if (node.primitive !== "param") return [];
      const size = node.axes.reduce((n, axis) => n * graph.axes[axis]!.size, 1);
      const { name } = node.params;
      const wave = (_: number, i: number) =>
        Math.sin(1 + i * 1.7 + name.length) / 2;
      return [[name, Array.from({ length: size }, wave)]];
    }),
  );
  t.equal(Object.keys(params).length, 5 + 6, "each matrix has two adapters");
  const x = Array.from({ length: 7 * 6 }, (_, i) => Math.cos(i * 2.3));
  const lengths = { token: 7 };
  await gradientsHold(t, { model: adapted, inputs: { x }, params, lengths });
  await matches(t, { model: graph, lengths }, "cpu", [
    {},
    { mesh: { ep: 2 } },
    { mesh: { dp: 2, ep: 2 } },
  ]);
});

t.test("memory consists of weights, adapters and their optimizer state", async (t) => {
  const published = publishedModel(await tinyConfig());
  const bounds = { maxTokens: 16, maxSequences: 1, maxContext: 16 };
  const base = published.build({ ...bounds, training: { auxiliary: 0.01 } });
  const plan = await compileTraining(withAdapters(base, adapters) as Model, {
    loss: "loss",
    optimizer: adamw(),
    trained: "adapters",
    weights: { "model.norm.weight": "bf16" },
    mesh: { ep: 2 },
  });
  const bytes = (kind: string, name: RegExp) =>
    Object.values(plan.buffers).filter((buffer) =>
      buffer.kind === kind && name.test(buffer.name)
    ).reduce((n, buffer) => n + (buffer.bytes as number), 0);
  const trained = bytes("weight", /lora_/);
  t.ok(trained > 0);
  t.equal(bytes("state", /^adamw/), 2 * trained);
  t.equal(
    bytes("state", /^adamw(?!.*lora_)/),
    0,
    "other weights have no state",
  );
  const { dtype } = plan.buffers["model.norm.weight"]!;
  t.equal(dtype, "bf16", "constant weights keep their dtype");
  const written = plan.programs.flatMap(({ steps }) => steps)
    .flatMap((step): string[] => {
      if (step.op === "copy") return [step.to];
      if (step.op !== "launch") return [];
      return plan.kernels[step.kernel]!.tree.bindings
        .filter(({ access }) => access !== "read")
        .map(({ name }) => step.bindings[name]!);
    })
    .filter((name) => plan.buffers[name]!.kind === "weight");
  t.ok(written.length > 0);
  t.ok(
    written.every((name) => /lora_/.test(name)),
    "base weights are only read",
  );
});

/** Writes a checkpoint with the values of a quantized one, in f32. */
async function decoded(name: string, folder: string): Promise<string> {
  const from = checkpointFolder(name);
  const { quantization_config: _, ...config } = readJson(
    path.join(from, "config.json"),
  );
  await writeFile(path.join(folder, "config.json"), JSON.stringify(config));
  const file = path.join(from, "model.safetensors");
  const written: { [name: string]: RawTensor } = {};
  await withTensors([file], files, async (tensors) => {
    const parts = new Set(
      [...tensors.values()].flatMap((entry) => entry.of ?? []),
    );
    for (const [name, entry] of tensors) {
      // The separate matrices of experts are written.
      const isStack = /experts\.(gate_up|down)_proj$/.test(name);
      const isPart = parts.has(name) && !entry.of;
      if (isStack || isPart || /:|_scales$/.test(name)) continue;
      const { shape, data } = name.endsWith("_blocks")
        ? await decodedBlocks(
          entry,
          tensors.get(name.replace("_blocks", "_scales"))!,
        )
        : await readTensor(entry);
      written[name.replace("_blocks", "")] = {
        dtype: data instanceof Float32Array ? "F32" : "I32",
        shape,
        data: bytesOf(data),
      };
    }
  });
  await writeRaw(path.join(folder, "model.safetensors"), written);
  return folder;
}

/** Decodes MXFP4 to `expert in out`. Codes are `expert out group byte`, low nibble first. */
async function decodedBlocks(blocks: TensorEntry, scales: TensorEntry) {
  const [experts = 0, out = 0, groups = 0, bytes = 0] = blocks.shape;
  const codes = await blocks.source.read(blocks.offset, blocks.bytes);
  const exponents = await scales.source.read(scales.offset, scales.bytes);
  const size = 2 * groups * bytes;
  const data = new Float32Array(experts * size * out);
  for (let row = 0; row < experts * out; row++) {
    for (let k = 0; k < size; k++) {
      const byte = codes[(row * size + k) >> 1]!;
      const code = k % 2 === 0 ? byte & 15 : byte >> 4;
      const scale = 2 ** (exponents[row * groups + Math.floor(k / 32)]! - 127);
      const expert = Math.floor(row / out);
      data[(expert * size + k) * out + row % out] =
        PACKED_ELEMENTS.fp4.value(code) * scale;
    }
  }
  return { shape: [experts, size, out], data };
}

t.test("adapters of quantized weights equal those of decoded weights", async (t) => {
  for (
    const [name, mesh] of inTurn(
      [
        ["deepseekv3-16e-fp8", "ep=2"],
        ["kimik2-16e-int4", "tp=2"],
        ["gptoss-8e-mxfp4", "tp=2,ep=2"],
      ] as const,
      3,
    )
  ) {
    const trained = async (folder: string) => {
      const opened = await openTrained(name, { mesh, adapter: "cpu", folder });
      try {
        await takeSteps(opened, 2);
        return Object.fromEntries(
          Object.entries(await weightsOf(name, opened)).map((
            [adapter, { data }],
          ) => [adapter, data as Float32Array]),
        );
      } finally {
        await opened.close();
      }
    };
    const quantized = await trained(checkpointFolder(name));
    const wanted = await trained(
      await decoded(name, temporaryFolder(t)),
    );
    const effective = Object.entries(wanted).filter(([adapter, values]) =>
      /lora_B/.test(adapter) && values.some((x) => x !== 0)
    );
    t.ok(
      effective.length > 10,
      `${name}: ${effective.length} adapters have an effect`,
    );
    const error = maxError(quantized, wanted);
    t.ok(error <= 1e-6, `${name}: adapters are off by ${error}`);
  }
});

t.test("adapters of a checkpoint are trained, used and merged", async (t) => {
  const folder = temporaryFolder(t);
  const demo = await wideDemo(folder);
  const at = (name: string) => path.join(folder, name);
  const run = async (argv: readonly string[], wanted = 0) => {
    const { code, out, err } = await switchyard(argv);
    t.equal(code, wanted, err);
    return { out, err };
  };
  const train = (out: string, mesh: string, ...more: readonly string[]) =>
    run([
      ...["train", demo, "--data", TEXT, "--out", at(out), "--mesh", mesh],
      ...["--batch", "2", "--length", "24", "--adapter", "cpu", "--json"],
      ...["--optimizer", "sgd", "--lr", "2", "--decay", "4", ...more],
    ]);
  const lora = ["--lora", "rank=4,alpha=8,targets=attention+experts"];
  await train("one", "ep=1", "--steps", "4", ...lora);
  const { out } = await train("two", "ep=2", "--steps", "4", ...lora);
  const machine = at("machine.json");
  await writeFile(machine, JSON.stringify(cpuMachine("cpu")));
  const planned = await run([
    ...["plan", demo, "--train", ...lora, "--optimizer", "sgd", "--json"],
    ...["--mesh", "ep=2", "--target", machine, "--max-tokens", "48"],
    ...["--max-sequences", "2", "--max-context", "24"],
  ]);
  const [{ bytes }] = JSON.parse(planned.out).ranks;
  t.equal(
    bytes.total,
    JSON.parse(out.split("\n")[0]!).memoryBytes,
    "memory is planned exactly",
  );
  const sharded = inTurn([["four", "tp=2,ep=2"], ["sliced", "tp=2"]], 2);
  for (const [out, mesh] of sharded) {
    await train(out!, mesh!, "--steps", "4", ...lora);
  }
  const { values } = await adaptersIn(at("one"));
  for (const out of ["two", ...sharded.map(([out]) => out!)]) {
    const found = await adaptersIn(at(out));
    t.strictSame(Object.keys(found.values), Object.keys(values));
    const error = maxError(found.values, values);
    t.ok(error <= 1e-4, `${out}: adapters are off by ${error}`);
  }

  // PEFT's names: matrices of [rank, inputs] and [outputs, rank] for each module, one module per expert.
  t.match(readJson(path.join(at("one"), "adapter_config.json")), {
    peft_type: "LORA",
    r: 4,
    lora_alpha: 8,
    target_modules: ["down_proj", "gate_proj", "k_proj"],
  });
  const { modules, scale } = await readLora(at("one"), files);
  t.equal(scale, 2);
  t.equal(modules.size, 4 * (4 + 8 * 3));
  t.ok(modules.has("model.layers.3.mlp.experts.7.down_proj"));
  const module = "base_model.model.model.layers.0.mlp.experts.0.up_proj";
  t.equal(values[`${module}.lora_A.weight`]!.length, 4 * 128);
  t.equal(values[`${module}.lora_B.weight`]!.length, 192 * 4);

  const generate = async (argv: readonly string[]) =>
    JSON.parse(
      (await run([
        ...["generate", ...argv, "--prompt", "Once upon", "-n", "8"],
        ...["--logprobs", "3", "--json", "--adapter", "cpu"],
      ])).out,
    );
  const adapted = await generate([demo, "--lora", at("one")]);
  for (const mesh of inTurn(["ep=4", "tp=2,ep=2"], 2)) {
    const found = await generate([demo, "--lora", at("one"), "--mesh", mesh]);
    t.strictSame(found.sequences, adapted.sequences, mesh);
  }
  t.strictNotSame((await generate([demo])).sequences, adapted.sequences);
  await run(["merge", demo, "--lora", at("one"), "--out", at("merged")]);
  const merged = await generate([at("merged")]);
  const numbers = (value: unknown): number[] =>
    JSON.stringify(value).match(/-?\d+\.\d+(e-?\d+)?/g)!.map(Number);
  const [wanted, found] = [adapted, merged].map(({ sequences }) => sequences);
  t.equal(found[0].text, wanted[0].text);
  const [a, b] = [numbers(wanted), numbers(found)];
  t.ok(a.length > 20);
  // Merged weights are rounded to f32.
  t.ok(
    a.every((value, i) =>
      Math.abs(value - b[i]!) <= 4e-6 * Math.max(1, -value)
    ),
    "merged and unmerged log-probabilities agree",
  );
  const before = readTensors(path.join(demo, "model.safetensors"));
  const after = readTensors(path.join(at("merged"), "model.safetensors"));
  const kept = Object.keys(before).filter((name) =>
    !/_proj\.weight$/.test(name)
  );
  for (const name of kept) {
    t.ok(isDeepStrictEqual(after[name], before[name]), `${name} is unchanged`);
  }

  // Weights in a subfolder, and a quantization in a file of its own.
  const weights = "parts/model.safetensors";
  await mkdir(path.join(at("split"), "parts"), { recursive: true });
  await copyFile(
    path.join(demo, "model.safetensors"),
    path.join(at("split"), weights),
  );
  const described = {
    "config.json": await readFile(path.join(demo, "config.json")),
    "hf_quant_config.json": `{"quantization":{"quant_algo":"FP8"}}`,
    "model.safetensors.index.json": JSON.stringify({
      weight_map: Object.fromEntries(
        Object.keys(before).map((name) => [name, weights]),
      ),
    }),
  };
  for (const [name, content] of Object.entries(described)) {
    await writeFile(path.join(at("split"), name), content);
  }
  // After an error, the folder can be written again, although it has a folder.
  const full: FileSystem = {
    ...files,
    write: async (file, parts) => {
      if (file.endsWith("config.json")) throw new MachineError("full");
      await files.write(file, parts);
    },
  };
  const failed = mergeLora(at("split"), full, {
    lora: at("one"),
    out: at("joined"),
  });
  await t.rejects(failed, { message: "full" });
  t.strictSame(readdirSync(at("joined"), { recursive: true }), ["parts"]);
  await run([
    ...["merge", at("split"), "--lora", at("one"), "--out", at("joined")],
  ]);
  for (const [name, content] of Object.entries(described)) {
    const copied = await readFile(path.join(at("joined"), name), "utf8");
    t.equal(copied, String(content), name);
  }
  const joined = readTensors(path.join(at("joined"), weights));
  t.ok(isDeepStrictEqual(joined, after), "the same tensors");

  // Unusable adapters end with one message.
  const config = path.join(at("two"), "adapter_config.json");
  const text = await readFile(config, "utf8");
  const refused: [change: object, message: RegExp][] = [
    [{ use_dora: true }, /adapter_config.json has 'use_dora' true/],
    [{ peft_type: "IA3" }, /their method is IA3/],
    [{ r: 0 }, /'r' or 'lora_alpha' of adapter_config.json is missing/],
    [{ modules_to_save: ["lm_head"] }, /has 'modules_to_save' \["lm_head"\]/],
  ];
  for (const [change, message] of refused) {
    await writeFile(config, JSON.stringify({ ...JSON.parse(text), ...change }));
    const argv = ["generate", demo, "--lora", at("two"), "-p", "a", "-n", "1"];
    t.match((await run(argv, 1)).err, message);
  }
  const none = ["--lora", "rank=4,targets=nothing", "--steps", "1"];
  const { code, err } = await switchyard([
    ...["train", demo, "--data", TEXT, "--out", at("none"), ...none],
    ...["--adapter", "cpu"],
  ]);
  t.equal(code, 1);
  t.match(err, /Cannot adapt the model: no matrix is a target/);
});

t.test("experts in one tensor have PEFT's layout of parameters", async (t) => {
  const folder = temporaryFolder(t);
  const at = (name: string) => path.join(folder, name);
  const run = async (argv: readonly string[]) => {
    const { code, out, err } = await switchyard(argv);
    t.equal(code, 0, err);
    return out;
  };
  const config = readJson(
    path.join(checkpointFolder("gptoss-8e"), "config.json"),
  );
  const { vocab_size } = await tinyConfig();
  const gptoss = await tinyModel(t);
  await writeFile(
    path.join(gptoss, "config.json"),
    JSON.stringify({ ...config, vocab_size, torch_dtype: "float32" }),
  );
  const train = (from: string, out: string, ...more: readonly string[]) =>
    run([
      ...["train", from, "--data", TEXT, "--out", at(out), "--batch", "2"],
      ...["--length", "16", "--optimizer", "sgd", "--lr", "20"],
      ...["--adapter", "cpu", ...more],
    ]);
  await train(gptoss, "start", "--steps", "1");
  const lora = ["--steps", "2", "--lora", "rank=3,alpha=6"];
  for (const mesh of ["ep=1", "tp=2,ep=2"]) {
    await train(at("start"), mesh, "--mesh", mesh, ...lora);
  }
  const { raw, values } = await adaptersIn(at("ep=1"));
  const sharded = await adaptersIn(at("tp=2,ep=2"));
  t.ok(maxError(sharded.values, values) <= 1e-4);

  const { hidden_size: embed, intermediate_size: ffn } = config as {
    readonly [size: string]: number;
  };
  t.match(readJson(path.join(at("ep=1"), "adapter_config.json")), {
    target_modules: ["k_proj", "o_proj", "q_proj", "v_proj"],
    target_parameters: ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"],
  });
  // PEFT wraps the first parameter of a module, then the result for the second.
  const module = "base_model.model.model.layers.0.mlp.experts";
  const shapes = Object.fromEntries(
    Object.entries(raw).filter(([name]) => name.startsWith(module))
      .map(([name, { shape }]) => [name.slice(module.length), shape]),
  );
  t.strictSame(shapes, {
    ".base_layer.lora_A.weight": [8 * 3, embed],
    ".base_layer.lora_B.weight": [2 * ffn!, 3 * 8],
    ".lora_A.weight": [8 * 3, ffn],
    ".lora_B.weight": [embed, 3 * 8],
  });

  const tokens = async (argv: readonly string[]) =>
    JSON.parse(
      await run([
        ...["generate", ...argv, "--prompt", "Once upon", "-n", "6"],
        ...["--logprobs", "1", "--json", "--adapter", "cpu"],
      ]),
    ).sequences[0].logprobs.map(({ logprob }: { logprob: number }) => logprob);
  const adapted = await tokens([at("start"), "--lora", at("ep=1")]);
  t.same(
    await tokens([at("start"), "--lora", at("ep=1"), "--mesh", "tp=2,ep=2"]),
    adapted,
  );
  await run([
    "merge",
    at("start"),
    "--lora",
    at("ep=1"),
    "--out",
    at("merged"),
  ]);
  const merged = await tokens([at("merged")]);
  const plain = await tokens([at("start")]);
  t.ok(maxError({ merged }, { merged: adapted }) <= 1e-6);
  t.ok(
    maxError({ plain }, { plain: adapted }) > 1e-4,
    "adapters have an effect",
  );
  // Change of one element by PEFT's formula.
  const names = [".lora_A.weight", ".lora_B.weight"].map((end) => module + end);
  const [a, b] = names.map((name) => values[name]!) as [number[], number[]];
  const matrix = "model.layers.0.mlp.experts.down_proj";
  const [before, after] = ["start", "merged"].map((name) =>
    readTensors(weightsFile(at(name)))[matrix]!
  ) as [number[], number[]];
  const [expert, input, output] = [5, 7, 11];
  const change = [0, 1, 2].map((r) =>
    b[output * 3 * 8 + r * 8 + expert]! * a[(expert * 3 + r) * ffn! + input]!
  ).reduce((x, y) => x + y);
  const element = (expert * ffn! + input) * embed! + output;
  const found = after[element]! - before[element]!;
  t.ok(Math.abs(found - 2 * change) < 1e-6, `${found} is ${2 * change}`);
});
