/**
 * Class `writes`: kernels of small models store each element once, terminate, and load only written elements, for all
 * parameters.
 */

import { readFileSync } from "node:fs";
import path from "node:path";
import fc from "fast-check";
import {
  compile,
  type CompileOptions,
  compileTraining,
  type Model,
  type RoutingPreset,
} from "../../compiler/mod.ts";
import { ROUTING_PRESETS } from "../../compiler/graph/routing/presets.ts";
import type { Config } from "../../models/mod.ts";
import { publishedModel } from "../../models/published.ts";
import { HostDevice } from "../../runtime/host/device.ts";
import { createSession, type HostTensor } from "../../runtime/mod.ts";
import {
  DataError,
  LowerError,
  MachineError,
  ModelError,
  PlacementError,
} from "../../spec/errors.ts";
import type { Plan } from "../../spec/plan/plan.ts";
import { checkpointFolder } from "../helpers/checkpoints.ts";
import { EXTRAS, routedLayer, ROUTERS } from "../helpers/routed_layer.ts";
import { WatchedPool } from "../helpers/watched_pool.ts";
import { waves } from "../helpers/waves.ts";
import { callsOf } from "./calls.ts";
import { unaliased } from "./edits.ts";
import { Finding, type FuzzClass } from "./fuzz.ts";
import {
  addResults,
  digestOf,
  inputsOf,
  randomWeights,
  tensorOf,
} from "./runs.ts";

/** Numbers are taken modulo the number of choices. */
interface Case {
  /** Index of a published family. Above the last: a layer with a router. */
  readonly family: number;
  readonly preset: number;
  readonly topK: number;
  readonly router: number;
  readonly extra: number;
  readonly options: number;
  readonly tuning: number;
  readonly training: boolean;
  /** Tokens of the layer. */
  readonly tokens: number;
}

const FAMILIES: readonly string[] = [
  ...["deepseekv2-16e", "deepseekv3-16e", "gptoss-8e", "granitemoe-8e"],
  ...["llama4-8e", "mixtral-6e", "olmoe-16e", "qwen2moe-8e", "qwen3moe-16e"],
];

const VOCABULARY = 32;

/** Sizes that replace those of families, if they have them. */
const SMALL: { readonly [field: string]: unknown } = {
  vocab_size: VOCABULARY,
  hidden_size: 16,
  intermediate_size: 8,
  moe_intermediate_size: 8,
  intermediate_size_mlp: 8,
  head_dim: 8,
  shared_expert_intermediate_size: 8,
  num_attention_heads: 2,
  num_key_value_heads: 2,
  q_lora_rank: 6,
  kv_lora_rank: 8,
  qk_nope_head_dim: 4,
  qk_rope_head_dim: 4,
  v_head_dim: 4,
  qk_head_dim: 8,
  num_hidden_layers: 2,
  moe_layers: [1],
  no_rope_layers: [1, 0],
};

const OPTIONS: readonly CompileOptions[] = [
  {},
  { mesh: { ep: 2 } },
  { mesh: { ep: 2 }, chunks: 2 },
  { mesh: { ep: 2 }, deduplicate: true },
  { mesh: { ep: 2 }, chunks: 2, deduplicate: true, check: true },
  { mesh: { dp: 2, ep: 2 }, zero: 1 },
  { mesh: { tp: 2, ep: 2 } },
  { mesh: { dp: 2 }, zero: 3 },
];

const TUNINGS: readonly NonNullable<CompileOptions["tuning"]>[] = [
  {},
  { attention: 3, matmul: { rows: 1, columns: 2, lanes: 8 } },
  { attention: 2, matmul: { rows: 3, columns: 2, lanes: 16 } },
  {
    attention: 4,
    matmul: { rows: 4, columns: 4, lanes: 64, split: 4, left: "workgroup" },
  },
  { matmul: { rows: 2, columns: 8, lanes: 64, split: 8, right: "vector" } },
];

const PRESETS = Object.keys(ROUTING_PRESETS) as RoutingPreset[];

const of = <T>(list: readonly T[], at: number): T => list[at % list.length]!;

/** Checks kernels of small models, element by element. */
export function writesClass(): FuzzClass<Case> {
  const small = fc.nat({ max: 1000 });
  return {
    name: "writes",
    count: 200,
    cases: fc.record({
      family: fc.oneof(
        fc.nat({ max: FAMILIES.length - 1 }),
        fc.constant(FAMILIES.length),
        fc.constant(FAMILIES.length),
      ),
      preset: small,
      topK: small,
      router: small,
      extra: small,
      options: small,
      tuning: small,
      training: fc.boolean(),
      tokens: fc.integer({ min: 1, max: 7 }),
    }),
    async judge(drawn) {
      let plan: Plan;
      try {
        plan = await planOf(drawn);
      } catch (error) {
        if (REFUSED.some((kind) => error instanceof kind)) {
          return "no such plan";
        }
        throw error;
      }
      const first = await watch(plan, drawn, GARBAGE[0]);
      if (first.faults.length > 0) throw new Finding(first.faults.join("; "));
      if (first.unwritten.length === 0) return "stored once, loaded after";
      const second = await watch(plan, drawn, GARBAGE[1]);
      if (first.digest === second.digest) return "loads what it does not use";
      throw new Finding(`It depends on memory: ${first.unwritten.join("; ")}`);
    },
    close: () => Promise.resolve(),
  };
}

const REFUSED = [ModelError, LowerError, PlacementError, MachineError];

function modelOf(drawn: Case): Model {
  if (drawn.family < FAMILIES.length) {
    const file = path.join(
      checkpointFolder(FAMILIES[drawn.family]!),
      "config.json",
    );
    const config = JSON.parse(readFileSync(file, "utf8")) as Config;
    const types = config["layer_types"];
    return publishedModel({
      ...config,
      ...Object.fromEntries(
        Object.entries(SMALL).filter(([name]) => name in config),
      ),
      ...Array.isArray(types)
        ? { layer_types: [types[0], "full_attention"] }
        : {},
      pad_token_id: null,
    }).build({
      maxTokens: 8,
      maxSequences: 2,
      maxContext: 8,
      ...drawn.training ? { training: { auxiliary: 0.01 } } : {},
    });
  }
  const preset = of(PRESETS, drawn.preset);
  const { chooses } = ROUTING_PRESETS[preset] as { readonly chooses?: number };
  const topK = chooses ?? of([1, 2, 3, 8], drawn.topK);
  const extra = of(EXTRAS, drawn.extra);
  return routedLayer(preset, topK, {
    extra,
    tokens: 7,
    ...of(ROUTERS, drawn.router),
  });
}

async function planOf(drawn: Case): Promise<Plan> {
  const options: CompileOptions = {
    ...of(OPTIONS, drawn.options),
    tuning: of(TUNINGS, drawn.tuning),
  };
  const model = modelOf(drawn);
  return unaliased(
    drawn.training
      ? await compileTraining(model, {
        ...options,
        loss: "loss",
        clipNorm: 1,
        accumulate: true,
        optimizer: drawn.topK % 2 === 0
          ? { kind: "adamW" }
          : { kind: "sgd", momentum: 0.5 },
      })
      : await compile(model, options),
  );
}

/** Bits of unwritten memory: two different floats and indices, both out of bounds. */
const GARBAGE = [0x7fc0dead, 0x449a5225] as const;

/** Observations of a run. */
interface Watched {
  readonly faults: readonly string[];
  readonly unwritten: readonly string[];
  /** Digest of outputs and final states. */
  readonly digest: string;
}

/** Runs a plan in which each buffer has a separate allocation. */
async function watch(
  plan: Plan,
  drawn: Case,
  garbage: number,
): Promise<Watched> {
  const pool = new WatchedPool(garbage);
  const device = new HostDevice(pool);
  const session = await createSession(plan, {
    devices: new Array(plan.ranks).fill(device),
    tensors: randomWeights(plan),
  });
  const unwritten = Object.values(plan.buffers)
    .filter(({ kind }) => kind === "scratch" || kind === "output")
    .map(({ allocation }) => allocation);
  const results = new Map<string, string>();
  try {
    for (const [program, inputs] of runsOf(plan, drawn)) {
      pool.begin((label) =>
        unwritten.includes(Number(/ allocation (\d+)$/.exec(label)?.[1] ?? -1))
      );
      addResults(results, program, await session.run(program, inputs));
    }
    const persistent = Object.values(plan.buffers)
      .filter(({ kind }) => kind === "state" || kind === "weight");
    addResults(
      results,
      "left in",
      await session.read(persistent.map(({ name }) => name)),
    );
  } catch (error) {
    // The router may reject random inputs.
    if (!(error instanceof DataError)) throw error;
  } finally {
    session.close();
  }
  const { faults } = pool;
  return { faults, unwritten: pool.unwritten, digest: digestOf(results) };
}

/** Returns programs with their inputs. */
function runsOf(
  plan: Plan,
  { family, training, tokens }: Case,
): readonly (readonly [string, { readonly [name: string]: HostTensor }])[] {
  const known = new Set(plan.programs.map(({ name }) => name));
  if (family < FAMILIES.length) {
    return callsOf(training ? "training" : "inference", VOCABULARY)
      .filter(([program]) => known.has(program))
      .slice(0, 2)
      .map(([program, values]) => [program, inputsOf(plan, program, values)]);
  }
  return plan.programs.map(({ name, inputs }) => [
    name,
    Object.fromEntries(
      Object.entries(inputs).map(([input, port]): [string, HostTensor] => {
        const shape = port.axes.map((axis) =>
          plan.axes[axis]!.dynamic ? tokens : plan.axes[axis]!.size
        );
        const length = shape.reduce((n, size) => n * size, 1);
        const { dtype, below = 2 } = port;
        const numbers = waves(length, 3).map(Math.abs);
        // Choices of a token must differ.
        const width = shape.at(-1) ?? 1;
        const integers = numbers.map((_, i) =>
          (Math.floor(i / width) * 3 + i % width) % below
        );
        return [
          input,
          tensorOf(dtype, shape, dtype === "f32" ? numbers : integers),
        ];
      }),
    ),
  ]);
}
