// Scratch memory of models at real sizes: close to the max live bytes, independent of the number of layers.
// rotates with: compiler/passes/arena.ts, compiler/passes/allocate.ts

import t from "tap";
import {
  adamw,
  compile,
  type CompileOptions,
  compileTraining,
  type Model,
} from "../compiler/mod.ts";
import type { DecoderOptions } from "../models/mod.ts";
import { publishedModel } from "../models/published.ts";
import type { Plan, Step } from "../spec/plan/plan.ts";
import { verifyPlan } from "../spec/verify/mod.ts";
import { smallDecoder } from "./helpers/plans.ts";
import { scratchOf } from "./helpers/scratch.ts";

/** Exceeds the needs of all plans. */
const LIMITS = {
  maxBufferSize: 2 ** 40,
  maxStorageBufferBindingSize: 2 ** 40,
};
const BOUNDS: DecoderOptions = {
  maxTokens: 512,
  maxSequences: 16,
  maxContext: 2048,
};
/** Max allocated bytes, relative to the max live bytes. */
const MAX_RATIO = 1.05;
/** Max allocated bytes of many layers, relative to few. */
const DEEPER = 1.02;

/** Qwen3-30B-A3B with another number of layers. */
function qwen(layers: number): Model {
  return publishedModel({
    architectures: ["Qwen3MoeForCausalLM"],
    num_hidden_layers: layers,
    norm_topk_prob: true,
    head_dim: 128,
  }).build(BOUNDS);
}

/** DeepSeek-V3 with another number of layers. */
function deepseek(layers: number): Model {
  return publishedModel({
    architectures: ["DeepseekV3ForCausalLM"],
    num_hidden_layers: layers,
    topk_method: "noaux_tc",
    scoring_func: "sigmoid",
    n_group: 8,
    topk_group: 4,
    q_lora_rank: 1536,
    kv_lora_rank: 512,
    v_head_dim: 128,
    qk_nope_head_dim: 128,
    qk_rope_head_dim: 64,
  }).build(BOUNDS);
}

/** Compiles with unlimited buffers. */
function compiled(model: Model, options: CompileOptions): Promise<Plan> {
  return compile(model, { limits: LIMITS, ...options });
}

interface Shape {
  readonly name: string;
  readonly model: (layers: number) => Model;
  readonly layers: readonly [few: number, many: number];
  readonly options: CompileOptions;
}

const SHAPES: readonly Shape[] = [
  {
    name: "Qwen3-30B-A3B, ep=8",
    model: qwen,
    layers: [4, 48],
    options: { mesh: { ep: 8 } },
  },
  {
    name: "Qwen3-30B-A3B, dp=2, ep=3",
    model: qwen,
    layers: [4, 12],
    options: { mesh: { dp: 2, ep: 3 } },
  },
  {
    name: "Qwen3-30B-A3B, tp=2, ep=4",
    model: qwen,
    layers: [4, 48],
    options: { mesh: { tp: 2, ep: 4 } },
  },
  {
    name: "Qwen3-30B-A3B in chunks",
    model: qwen,
    layers: [4, 12],
    options: { mesh: { ep: 8 }, chunks: 4 },
  },
  {
    name: "DeepSeek-V3, ep=8",
    model: deepseek,
    layers: [6, 61],
    options: { mesh: { ep: 8 } },
  },
  {
    name: "DeepSeek-V3, tp=2, ep=4",
    model: deepseek,
    layers: [6, 12],
    options: { mesh: { tp: 2, ep: 4 } },
  },
  {
    name: "DeepSeek-V3 in chunks",
    model: deepseek,
    layers: [6, 12],
    options: { mesh: { ep: 8 }, chunks: 2 },
  },
];

for (const { name, model, layers: [few, many], options } of SHAPES) {
  t.test(name, async (t) => {
    const short = await compiled(model(few), options);
    const long = await compiled(model(many), options);
    for (const plan of [short, long]) {
      const { live, allocated } = scratchOf(plan);
      t.ok(allocated <= MAX_RATIO * live, `${allocated} for ${live}`);
    }
    const [a, b] = [short, long].map((plan) => scratchOf(plan).allocated);
    t.ok(b! <= DEEPER * a!, `${b} for ${many} layers, ${a} for ${few}`);
    t.same(verifyPlan(short), []);
    t.same(
      differing(
        long,
        (stepsOf(long).length - stepsOf(short).length) /
          (many - few),
      ),
      [],
    );
  });
}

function stepsOf({ programs }: Plan): readonly Step[] {
  return programs[0]!.steps;
}

/** Scratch buffers of middle layers whose offsets differ from those of the next layer. */
function differing(plan: Plan, layer: number): string[] {
  const steps = stepsOf(plan);
  const wrong: string[] = [];
  let compared = 0;
  // The first two layers and the last two have other neighbours.
  for (let i = steps.length - 3 * layer; i >= steps.length - 4 * layer; i--) {
    const [here, next] = [steps[i]!, steps[i + layer]!];
    if (here.op !== "launch" || next.op !== "launch") continue;
    for (const [binding, name] of Object.entries(here.bindings)) {
      const [a, b] = [name, next.bindings[binding]!]
        .map((name) => plan.buffers[name]!);
      if (a!.kind !== "scratch") continue;
      compared++;
      if (a!.offset !== b!.offset || a!.allocation !== b!.allocation) {
        wrong.push(`${a!.name} at ${a!.offset}, ${b!.name} at ${b!.offset}`);
      }
    }
  }
  return compared > 20 ? wrong : [`only ${compared} were compared`];
}

t.test("a limit splits memory into several arenas", async (t) => {
  const model = smallDecoder(2, 8);
  const roomy = await compiled(model, { mesh: { ep: 2 } });
  const one = scratchOf(roomy);
  t.equal(one.allocations, 2, "an arena, and buffers read after the program");
  const longest = roomy.requiredLimits["maxStorageBufferBindingSize"]!;
  t.ok(one.allocated > longest);
  const limits = { ...LIMITS, maxBufferSize: longest };
  const plan = await compiled(model, { mesh: { ep: 2 }, limits });
  t.ok(scratchOf(plan).allocations > 2);
  t.equal(plan.requiredLimits["maxBufferSize"], longest);
  t.same(verifyPlan(plan), []);
});

for (const recompute of [false, true]) {
  t.test(`a step of training, recompute ${recompute}`, async (t) => {
    const model = publishedModel({
      architectures: ["Qwen3MoeForCausalLM"],
      num_hidden_layers: 4,
      norm_topk_prob: true,
      vocab_size: 4096,
      hidden_size: 512,
      num_attention_heads: 8,
      head_dim: 64,
      num_key_value_heads: 4,
      num_experts: 16,
      num_experts_per_tok: 2,
      moe_intermediate_size: 256,
    }).build({
      maxTokens: 1024,
      maxSequences: 4,
      maxContext: 512,
      training: { auxiliary: 0.01, recompute },
    });
    for (const mesh of [{ tp: 2, ep: 2 }, { dp: 2, ep: 2 }, { ep: 3 }]) {
      const plan = await compileTraining(model, {
        mesh,
        limits: LIMITS,
        loss: "loss",
        optimizer: adamw(),
      });
      const { live, allocated } = scratchOf(plan);
      t.ok(
        allocated <= MAX_RATIO * live,
        `${JSON.stringify(mesh)}: ${allocated} for ${live}`,
      );
    }
  });
}
