// Launches of a layer at published sizes: the numbers of kernels that a device runs and of exchanges.

import { readdirSync, readFileSync } from "node:fs";
import t from "tap";
import {
  compile,
  type CompileOptions,
  type Model,
  paramFacts,
  trace,
} from "../compiler/mod.ts";
import { configurationOf } from "../engine/checkpoint/configuration.ts";
import { compiledAs } from "../engine/checkpoint/stored_as.ts";
import { TUNING } from "../engine/tune/tuning.ts";
import { publishedModel } from "../models/published.ts";
import { UNLIMITED } from "../spec/limits.ts";
import { LENGTHS } from "../compiler/passes/lower/context.ts";
import { walkExpressions } from "../spec/kernel/walk.ts";
import { verifyPlan } from "../spec/verify/mod.ts";
import type { Plan, Step } from "../spec/plan/plan.ts";
import { evaluateSize } from "../spec/size.ts";
import { inTurn } from "./helpers/seed.ts";

const BOUNDS = { maxTokens: 512, maxSequences: 16, maxContext: 2048 };
const LAYERS = { num_hidden_layers: 3 };
const MODELS: { readonly [name: string]: Model } = {
  "OLMoE": publishedModel({
    ...LAYERS,
    architectures: ["OlmoeForCausalLM"],
  }).build(BOUNDS),
  "Qwen3-MoE": publishedModel({
    ...LAYERS,
    architectures: ["Qwen3MoeForCausalLM"],
    head_dim: 128,
  }).build(BOUNDS),
};
/** Storage buffers per kernel: unlimited, or as many as WebGPU guarantees. */
const BINDINGS = { many: Infinity, guaranteed: 8 };
/** Launches and exchanges of a layer: on one rank, on four, and on four with deduplicated dispatch. */
const STEPS = [12, 17, 18];

/** Launches and exchanges of the middle layer. */
async function layerSteps(
  model: Model,
  options: CompileOptions,
): Promise<readonly Step[]> {
  const plan = await compile(model, options);
  return plan.programs[0]!.steps.filter(({ block }) =>
    block === "model.layers.1" || block?.startsWith("model.layers.1.")
  );
}

for (const [name, model] of Object.entries(MODELS)) {
  t.test(`a layer of ${name} has few launches`, async (t) => {
    for (const bindings of ["many", "guaranteed"] as const) {
      const limits = {
        ...UNLIMITED,
        maxStorageBuffersPerShaderStage: BINDINGS[bindings],
      };
      // Tuned for the CPU, or untuned.
      const tuning = bindings === "many" ? TUNING.native : {};
      const options = { limits, tuning };
      const ranks = {
        mesh: { ep: 4 },
        place: { expert: "ep", token: "ep", sequence: "ep" },
      };
      const counts: number[] = [];
      for (
        const where of [
          {},
          { ...ranks, deduplicate: false },
          { ...ranks, deduplicate: true },
        ]
      ) {
        counts.push(
          (await layerSteps(model, { ...options, ...where })).length,
        );
      }
      t.strictSame(counts, STEPS, `${bindings} bindings`);
    }
  });
}

t.test("kernels read inputs at the offsets of their plan", async (t) => {
  const limits = { ...UNLIMITED, maxStorageBuffersPerShaderStage: 8 };
  for (const maxTokens of [512, 64]) {
    const model = publishedModel({
      num_hidden_layers: 1,
      architectures: ["Qwen3MoeForCausalLM"],
      head_dim: 128,
    }).build({ ...BOUNDS, maxTokens });
    const { buffers, kernels, programs } = await compile(model, { limits });
    const [{ steps }] = programs as [typeof programs[number]];
    const read = new Set<number>();
    for (const step of steps) {
      if (step.op !== "launch") continue;
      const { bindings, body } = kernels[step.kernel]!.tree;
      const [name] = bindings.map(({ name }) => name)
        .filter((name) => step.bindings[name] === LENGTHS);
      walkExpressions(body, (e) => {
        if (e.op !== "load" || e.binding !== name) return;
        if (e.index.op !== "binary" || e.index.a.op !== "const") return;
        read.add(Number(e.index.a.value) * 4);
      });
    }
    const offsets = Object.values(buffers)
      .filter(({ kind }) => kind === "input").map(({ offset }) => offset);
    t.not(read.size, 0, "kernels read inputs after the lengths");
    t.strictSame([...read].filter((at) => !offsets.includes(at)), []);
  }
});

/** Compiles the first layers of a published model for GPUs. */
function gpuPlan(
  name: string,
  { layers = 3, ...options }: CompileOptions & { readonly layers?: number } =
    {},
): Promise<Plan> {
  const file = new URL(`${name}.json`, CONFIGS);
  const config = JSON.parse(readFileSync(file, "utf8"));
  const fewer = { num_hidden_layers: layers };
  const { published, storedAs } = configurationOf(
    config.text_config
      ? { ...config, text_config: { ...config.text_config, ...fewer } }
      : { ...config, ...fewer },
    name,
  );
  // As in generation, the device chooses the best token.
  const model = published.build({ ...BOUNDS, next: { candidates: 1 } });
  return compile(model, {
    weights: compiledAs(storedAs(), paramFacts(trace(model))),
    limits: UNLIMITED,
    tuning: TUNING.gpu,
    ...options,
  });
}

const CONFIGS = new URL("references/configs/", import.meta.url);
const CONFIG_NAMES = readdirSync(CONFIGS)
  .filter((file) => file.endsWith(".json") && file !== "published.json")
  .map((file) => file.slice(0, -".json".length));

for (const name of inTurn(CONFIG_NAMES, 11)) {
  t.test(`kernels of ${name} are valid on a GPU`, async (t) => {
    // On one rank, experts of Kimi K2 exceed a buffer.
    const mesh = name === "kimi-k2" ? { mesh: { ep: 2 } } : {};
    for (const maxStorageBuffersPerShaderStage of [8, 16]) {
      const limits = { ...UNLIMITED, maxStorageBuffersPerShaderStage };
      const plan = await gpuPlan(name, { layers: 5, limits, ...mesh });
      t.strictSame(verifyPlan(plan), []);
    }
  });
}

t.test("launches for one token that are alone have more lanes if the device has", async (t) => {
  const lanesOf = async (lanes: number) => {
    const limits = {
      ...UNLIMITED,
      maxComputeInvocationsPerWorkgroup: lanes,
      maxComputeWorkgroupSizeX: lanes,
    };
    const plan = await gpuPlan("qwen3-30b-a3b", { layers: 2, limits });
    t.strictSame(verifyPlan(plan), []);
    const trees = Object.values(plan.kernels).map(({ tree }) => tree);
    return trees.filter(({ workgroupSize }) => workgroupSize > 256)
      .map(({ name }) => name.replace(/_\d$/, ""));
  };
  t.strictSame(await lanesOf(256), []);
  t.strictSame(
    [...new Set(await lanesOf(1024))].toSorted(),
    ["combined_matmul_768x2048", "matmul_4096x2048", "matmul_4096x2048_wide"],
  );
});

/** Launches of a layer with experts for one token. Ranks of DeepSeek-V3 exchange rows. */
const OF_ONE_TOKEN = {
  "qwen3-30b-a3b": 7,
  "gpt-oss-20b": 7,
  "glm-4.5-air": 7,
  "deepseek-v2-lite": 8,
  "deepseek-v3": 12,
};

for (const [name, count] of Object.entries(OF_ONE_TOKEN)) {
  t.test(`a layer of ${name} has ${count} launches for a token on a GPU`, async (t) => {
    const ranks = {
      mesh: { ep: 8 },
      place: { expert: "ep", token: "ep", sequence: "ep" },
    };
    const { programs: [{ steps } = { steps: [] }] } = await gpuPlan(name, {
      layers: 5,
      ...name === "deepseek-v3" ? ranks : {},
    });
    const launches = (tokens: number) =>
      steps.filter((step) =>
        step.op === "launch" && step.block?.startsWith("model.layers.3") &&
        step.workgroups.every((size) => evaluateSize(size, () => tokens) > 0)
      ).length;
    t.equal(launches(1), count);
    t.ok(launches(2) > count, "several tokens need more launches");
  });
}

t.test("a step of few tokens has workgroups for the rows of a team", async (t) => {
  const { kernels, programs: [{ steps } = { steps: [] }] } = await gpuPlan(
    "qwen3-30b-a3b",
    { layers: 1 },
  );
  const output = (tokens: number) =>
    steps.flatMap((step) => {
      if (step.op !== "launch") return [];
      const { name } = kernels[step.kernel]!.tree;
      const grid = step.workgroups.map((size) =>
        evaluateSize(size, () => tokens)
      );
      return /^matmul_4096x2048/.test(name) && !grid.includes(0) ? [grid] : [];
    });
  t.strictSame(output(1), [[1, 128, 1]]);
  t.strictSame(output(8), [[2, 128, 1]]);
  t.strictSame(output(16), [[4, 128, 1]]);
  t.strictSame(output(17), [[1, 128, 1]]);
});
