/**
 * `linearRecurrence` on the native device against llama.cpp's `gated_delta_net` and `ssm_scan`: microseconds per token
 * for a prompt of 2,048 tokens, by CPU time, interleaved, llama.cpp with one thread. The time of `linearRecurrence` is
 * the difference of two runs that transfer the same inputs. The operators are those of the library that `bench peers`
 * installs. Linux on x64 only. Flags: `--tokens N`, `--runs N`, `--peers FOLDER`.
 */

import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import koffi from "koffi";
import { linearRecurrence, model, type Tensor } from "../compiler/mod.ts";
import type { HostTensor } from "../runtime/mod.ts";
import { machine, median } from "./measure.ts";
import { load, randomValues } from "./session.ts";

const FOLDER = "node_modules/@node-llama-cpp/linux-x64/bins/linux-x64";

const { values: flags } = parseArgs({
  options: {
    tokens: { type: "string", default: "2048" },
    runs: { type: "string", default: "7" },
    peers: {
      type: "string",
      default: fileURLToPath(new URL("peers", import.meta.url)),
    },
  },
});
const [tokens, runs] = [Number(flags.tokens), Number(flags.runs)];

/** Ops by which two runs differ. */
const OPS = 4;

/** A layer of a published model. */
interface Layer {
  readonly name: string;
  readonly operator: "gated_delta_net" | "ssm_scan";
  readonly rule: "delta" | "add";
  readonly heads: number;
  readonly kvHeads: number;
  readonly dim: number;
  readonly valueDim: number;
}

const LAYERS: readonly Layer[] = [{
  name: "gated delta rule of Qwen3-Next, Qwen3.6",
  operator: "gated_delta_net",
  rule: "delta",
  heads: 32,
  kvHeads: 16,
  dim: 128,
  valueDim: 128,
}, {
  name: "Mamba-2 of Nemotron-3-Nano",
  operator: "ssm_scan",
  rule: "add",
  heads: 64,
  kvHeads: 8,
  dim: 128,
  valueDim: 64,
}, {
  name: "Mamba-2 of Granite-4-H-Small",
  operator: "ssm_scan",
  rule: "add",
  heads: 128,
  kvHeads: 1,
  dim: 128,
  valueDim: 64,
}];

/** Returns `elements` values between two numbers. */
function between(low: number, high: number, elements: number): Float32Array {
  return randomValues(elements)
    .map((x) => low + (high - low) * (x + 1) / 2);
}

/** Loads some ops on the native device. Returns a run of them. */
async function openOurs(
  { rule, heads, kvHeads, dim, valueDim }: Layer,
  ops: number,
): Promise<{ run(): Promise<unknown>; close(): Promise<void> }> {
  const axes = { head: heads, kvHead: kvHeads, dim, valueDim, sequence: 1 };
  const layer = model({ token: tokens, ...axes }, (m) => {
    const at = (name: string) => m.input(name, "token", { dtype: "i32" });
    const query = m.input("query", "token kvHead dim");
    const key = m.input("key", "token kvHead dim");
    const value = m.input("value", "token head valueDim");
    const shared = {
      rule,
      decay: m.input("decay", "token head"),
      rate: m.input("rate", "token head"),
      sequence: at("sequence"),
      position: at("position"),
    };
    const outputs: { [name: string]: Tensor } = {};
    for (let i = 0; i < ops; i++) {
      const { y, state } = linearRecurrence(query, key, value, {
        ...shared,
        state: m.state(`state${i}`, "sequence head dim valueDim"),
      });
      Object.assign(outputs, { [`y${i}`]: y, [`state${i}`]: state });
    }
    return outputs;
  });
  const { compute, close } = await load(layer, {
    adapter: "native",
    mesh: { ep: 1 },
  });
  const f32 = (low: number, high: number, ...shape: number[]): HostTensor => ({
    dtype: "f32",
    shape,
    data: between(low, high, shape.reduce((n, size) => n * size)),
  });
  const i32 = (of: (i: number) => number): HostTensor => ({
    dtype: "i32",
    shape: [tokens],
    data: Int32Array.from({ length: tokens }, (_, i) => of(i)),
  });
  const inputs = {
    query: f32(-0.1, 0.1, tokens, kvHeads, dim),
    key: f32(-0.1, 0.1, tokens, kvHeads, dim),
    value: f32(-1, 1, tokens, heads, valueDim),
    decay: f32(0.75, 1, tokens, heads),
    rate: f32(0, 1, tokens, heads),
    sequence: i32(() => 0),
    position: i32((i) => i),
  };
  return {
    run: () => compute(inputs),
    close,
  };
}

/** The library of ggml's kernels for this processor: each rates itself, and 0 means that it cannot run here. */
function fastestGgml(folder: string): string {
  const rated = readdirSync(folder)
    .filter((file) => file.startsWith("libggml-cpu-"))
    .map((file) => join(folder, file))
    .map((path) => {
      const score = koffi.load(path).func("ggml_backend_score", "int", []);
      return { path, score: Number(score()) };
    });
  return rated.reduce((a, b) => b.score > a.score ? b : a).path;
}

/** Opens ggml's operators. */
function openGgml(folder: string) {
  const base = koffi.load(join(folder, "libggml-base.so"));
  const cpu = koffi.load(fastestGgml(folder));
  const params = koffi.struct({
    size: "size_t",
    memory: "void *",
    noAlloc: "bool",
  });
  const pointers = (n: number): string[] => Array<string>(n).fill("void *");
  const of = (name: string, result: string, args: readonly unknown[]) =>
    base.func(`ggml_${name}`, result, args as string[]);
  const sizes = ["int64_t", "int64_t", "int64_t", "int64_t"];
  cpu.func("ggml_backend_cpu_init", "void *", [])();
  return {
    init: base.func("ggml_init", "void *", [params]),
    free: of("free", "void", ["void *"]),
    graph: of("new_graph", "void *", ["void *"]),
    expand: of("build_forward_expand", "void", pointers(2)),
    tensor: of("new_tensor_4d", "void *", ["void *", "int", ...sizes]),
    data: of("get_data", "void *", ["void *"]),
    deltaNet: of("gated_delta_net", "void *", [...pointers(7), "int64_t"]),
    ssmScan: of("ssm_scan", "void *", [...pointers(8), "int64_t"]),
    compute: cpu.func("ggml_graph_compute_with_ctx", "int", [
      "void *",
      "void *",
      "int",
    ]),
  };
}

/** Builds llama.cpp's operator with the same sizes. Returns a run of it with one thread. */
function openTheirs(
  ggml: ReturnType<typeof openGgml>,
  { operator, heads, kvHeads, dim, valueDim }: Layer,
): { run(): void; close(): void } {
  const context: unknown = ggml.init({
    size: 3 * 2 ** 30,
    memory: null,
    noAlloc: false,
  });
  const tensor = (low: number, high: number, ...shape: number[]): unknown => {
    const sizes = [0, 1, 2, 3].map((i) => shape[i] ?? 1);
    const made: unknown = ggml.tensor(context, 0, ...sizes);
    const values = between(low, high, sizes.reduce((n, size) => n * size));
    koffi.encode(ggml.data(made), "float", values, values.length);
    return made;
  };
  const make = (): unknown => {
    if (operator === "gated_delta_net") {
      return ggml.deltaNet(
        context,
        tensor(-0.1, 0.1, dim, kvHeads, tokens),
        tensor(-0.1, 0.1, dim, kvHeads, tokens),
        tensor(-1, 1, valueDim, heads, tokens),
        tensor(-0.3, 0, 1, heads, tokens),
        tensor(0, 1, 1, heads, tokens),
        tensor(0, 0, dim, valueDim, heads),
        1,
      );
    }
    const ids: unknown = ggml.tensor(context, 26, 1, 1, 1, 1);
    koffi.encode(ggml.data(ids), "int32_t", 0);
    return ggml.ssmScan(
      context,
      tensor(0, 0, dim, valueDim, heads),
      tensor(-1, 1, valueDim, heads, tokens),
      tensor(-3, 0, heads, tokens),
      tensor(-2, -0.1, 1, heads),
      tensor(-0.1, 0.1, dim, kvHeads, tokens),
      tensor(-0.1, 0.1, dim, kvHeads, tokens),
      ids,
      1,
    );
  };
  const result = make();
  const graph: unknown = ggml.graph(context);
  ggml.expand(graph, result);
  return {
    run: () => void ggml.compute(context, graph, 1),
    close: () => void ggml.free(context),
  };
}

/** Microseconds of CPU time per token of a run. */
async function timed(run: () => unknown): Promise<number> {
  const before = process.cpuUsage();
  await run();
  const { user, system } = process.cpuUsage(before);
  return (user + system) / tokens;
}

const folder = join(flags.peers, FOLDER);
if (!existsSync(folder)) {
  console.error(
    `Cannot compare with llama.cpp: '${folder}' is missing. Run 'npm run bench -- peers' once`,
  );
  process.exit(3);
}
console.log(machine());
// The native device configures the foreign functions before any library is loaded.
const opened = [];
for (const layer of LAYERS) {
  const one = await openOurs(layer, 1);
  opened.push({ one, more: await openOurs(layer, 1 + OPS) });
}
const ggml = openGgml(folder);
for (const [i, layer] of LAYERS.entries()) {
  const { one, more } = opened[i]!;
  const theirs = openTheirs(ggml, layer);
  const times: { ours: number; theirs: number }[] = [];
  for (let i = 0; i <= runs; i++) {
    const rest = await timed(one.run);
    times.push({
      ours: (await timed(more.run) - rest) / OPS,
      theirs: await timed(theirs.run),
    });
  }
  // The first run compiles and touches memory.
  times.shift();
  const [a, b] = [
    median(times.map(({ ours }) => ours)),
    median(times.map(({ theirs }) => theirs)),
  ];
  const ratio = median(times.map(({ ours, theirs }) => theirs / ours));
  console.log(
    `${layer.name}: ${a.toFixed(1)} us a token, ${layer.operator} ${
      b.toFixed(1)
    } us, ${ratio.toFixed(2)} times as fast`,
  );
  theirs.close();
  await one.close();
  await more.close();
}
