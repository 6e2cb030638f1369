// Published models from their config.json: parameters, active parameters, bytes of weights.
// rotates with: models/, engine/checkpoint/configuration.ts, engine/checkpoint/quantization_config.ts, engine/checkpoint/stored_as.ts, spec/weights/encoding.ts, test/references/configs/

import { readFileSync } from "node:fs";
import t from "tap";
import { type ParamFacts, paramFacts, trace } from "../compiler/mod.ts";
import { configurationOf } from "../engine/checkpoint/configuration.ts";
import { parseJsonObject } from "../engine/json_file.ts";
import { readQuantization } from "../engine/checkpoint/quantization_config.ts";
import { readStoredAs } from "../engine/checkpoint/stored_as.ts";
import { publishedModel } from "../models/published.ts";
import { encodedBytes, type WeightEncoding } from "../spec/weights/encoding.ts";
import { checkpointFolder } from "./helpers/checkpoints.ts";

const CONFIGS = new URL("references/configs/", import.meta.url);

/** Figures of `published.json`, as rounded by publishers. */
interface Published {
  readonly parameters: string;
  readonly active: string;
  readonly bytes?: number;
}

function read(name: string): { readonly [key: string]: unknown } {
  return JSON.parse(readFileSync(new URL(`${name}.json`, CONFIGS), "utf8"));
}

const PUBLISHED = read("published") as { readonly [name: string]: Published };

function factsOf(name: string): ParamFacts[] {
  return paramFacts(
    trace(
      configurationOf(read(name), name).published.build({
        maxTokens: 16,
        maxSequences: 1,
        maxContext: 64,
      }),
    ),
  );
}

function sum(
  facts: readonly ParamFacts[],
  of: (param: ParamFacts) => number,
): number {
  return facts.reduce((n, param) => n + of(param), 0);
}

/** Bytes of the tensors of a checkpoint with this config.json. */
function bytesOf(name: string, facts: readonly ParamFacts[]): number {
  const stored = configurationOf(read(name), name).storedAs();
  return sum(
    facts,
    (param) =>
      param.matrix.count * encodedBytes(stored.of(param), param.matrix),
  );
}

/** Whether `value` rounds to `text` ("30.5B", "400M"), within a unit of its last digit. */
function agrees(value: number, text: string): boolean {
  const [, digits, scale] = /^([\d.]+)([BM])$/.exec(text)!;
  const decimals = digits!.split(".")[1]?.length ?? 0;
  const factor = scale === "B" ? 1e9 : 1e6;
  // "400M" is rounded to hundreds.
  const zeros = decimals === 0 ? /0*$/.exec(digits!)![0].length : 0;
  const unit = factor * 10 ** (zeros - decimals);
  return Math.abs(value - Number(digits) * factor) < unit;
}

/** Parameters of the vision part of Llama 4 Scout, which is not built: 34 layers of 1408 with 5632; no projections. */
const VISION = 34 * (4 * 1408 * 1408 + 2 * 1408 * 5632);

/** The vocabulary matrices of Kimi-Linear, which its name leaves out. */
const VOCABULARY = 2 * 163840 * 2304;

/** The vision part of MiniMax-M3, which is not built: 32 layers of 1280 with 5120; four projections. */
const M3_VISION = 32 * (4 * 1280 * 1280 + 2 * 1280 * 5120) +
  6144 * (1280 + 6144 + 4 * 6144 + 6144);

/** Elements that a publisher counts besides those of the model. */
function others(name: string): number {
  if (name.startsWith("llama-4")) return VISION;
  if (name === "minimax-m3") return M3_VISION;
  return name.startsWith("kimi-linear") ? -VOCABULARY : 0;
}

for (const [name, { parameters, active, bytes }] of Object.entries(PUBLISHED)) {
  t.test(`${name} has the parameters that its publisher states`, (t) => {
    const facts = factsOf(name);
    const all = sum(facts, (param) => param.elements);
    t.ok(agrees(all + others(name), parameters), `${all} is ${parameters}`);
    const some = sum(facts, (param) => param.active);
    t.ok(agrees(some, active), `${some} is ${active}`);
    if (bytes === undefined) t.comment(`${name}: no total_size was found`);
    else t.equal(bytesOf(name, facts), bytes, "bytes equal total_size");
    t.end();
  });
}

t.test("a configuration with the numbers that Python writes", (t) => {
  const config = checkpointFolder("nemotronh-16e") + "/config.json";
  const text = readFileSync(config, "utf8");
  const written = text.replace(/\{\s*"__float__": "Infinity"\s*\}/, "Infinity");
  t.not(written, text);
  t.strictSame(parseJsonObject(written, ""), parseJsonObject(text, ""));
  t.strictSame(
    parseJsonObject('{"a": "-Infinity, \\"NaN", "b": -Infinity}', ""),
    {
      a: '-Infinity, "NaN',
      b: { __float__: "-Infinity" },
    },
  );
  const truncated = `{"a": "${'\\"'.repeat(1e6)}`;
  for (const damaged of ['{"a": NaNa}', truncated]) {
    t.throws(() => parseJsonObject(damaged, ""), {
      message: "Cannot read '': it is not JSON. Copy it again",
    });
  }
  t.end();
});

/** Fields of published files beside those of `references/configs`. */
const MORE: { readonly [name: string]: object } = {
  "gemma-4-26b-a4b": { vision_config: {}, boi_token_id: 1 },
  "glm-4.5-air": { moe_router_dtype: "float32" },
  "minimax-m2": { attn_type_list: [1, 1], sliding_window: null },
  "minimax-m3": { vision_config: {}, image_token_index: 1 },
  "nemotron-3-nano": {
    chunk_size: 128,
    expand: 2,
    hidden_dropout: 0,
    norm_eps: 1e-5,
    residual_in_fp32: false,
    time_step_min: 1e-3,
    use_mamba_kernels: true,
  },
  "qwen3-30b-a3b": {
    qkv_bias: false,
    shared_expert_intermediate_size: 0,
    use_qk_norm: true,
  },
};

t.test("all fields of published configurations are known", (t) => {
  for (const [name, more] of Object.entries(MORE)) {
    const { published } = configurationOf({ ...read(name), ...more }, name);
    t.strictSame(published.unread, [], name);
  }
  t.throws(
    () =>
      configurationOf({ ...read("minimax-m2"), attn_type_list: [1, 0] }, ""),
    { message: "'attn_type_list' is [1,0]. It must be a list of ones" },
  );
  t.end();
});

t.test("DeepSeek-V3 with its predictor has the elements and bytes of its files", (t) => {
  const facts = factsOf("deepseek-v3");
  const layer = facts.filter(({ name }) => name.startsWith("model.layers.60."));
  const [embed, vocab] = [7168, 129280];
  // A layer with experts, and eh_proj, embedding, output and norms in bf16.
  const beside = 2 * embed * embed + 2 * vocab * embed + 3 * embed;
  const stored = configurationOf(read("deepseek-v3"), "").storedAs();
  const scales = (of: readonly ParamFacts[]) =>
    sum(
      of,
      (param) =>
        stored.of(param).name === "fp8"
          ? (encodedBytes(stored.of(param), param.matrix) * param.matrix.count -
            param.elements) / 4
          : 0,
    );
  t.equal(
    sum([...facts, ...layer], (param) => param.elements) + beside +
      scales([...facts, ...layer]),
    684_531_386_000,
    "elements of 91,991 tensors, including scales",
  );
  const bytes = bytesOf("deepseek-v3", [...facts, ...layer]) + 2 * beside;
  t.equal((bytes / 2 ** 30).toFixed(2), "641.29", "GiB");
  t.end();
});

/** Encodings with the tensors that files have for one matrix: elements times bytes. */
const TENSORS: readonly (readonly [WeightEncoding, string, number])[] = [
  [
    { name: "fp8", block: [128, 128] },
    "DeepSeek-R1 kv_a_proj_with_mqa [576, 7168], weight_scale_inv [5, 56] f32",
    576 * 7168 + 5 * 56 * 4,
  ],
  [
    { name: "int4", group: 32 },
    "Kimi-K2 down_proj: weight_packed [576, 896] i32, scale [576, 224] bf16, shape [2] i32",
    576 * 896 * 4 + 576 * 224 * 2 + 2 * 4,
  ],
  [
    { name: "gptq", group: 128 },
    "qweight [896, 576] i32, qzeros [56, 72] i32, scales [56, 576] f16, g_idx [7168] i32",
    896 * 576 * 4 + 56 * 72 * 4 + 56 * 576 * 2 + 7168 * 4,
  ],
  [
    { name: "awq", group: 128 },
    "qweight [7168, 72] i32, qzeros [56, 72] i32, scales [56, 576] f16",
    7168 * 72 * 4 + 56 * 72 * 4 + 56 * 576 * 2,
  ],
  [
    { name: "nvfp4" },
    "weight [576, 3584] u8, weight_scale [576, 448] f8, weight_scale_2 f32",
    576 * 3584 + 576 * 448 + 4,
  ],
  [
    { name: "mxfp8" },
    "weight [576, 7168] f8, weight_scale [576, 224] u8",
    576 * 7168 + 576 * 224,
  ],
  [
    { name: "mxfp4" },
    "blocks [576, 224, 16] u8, scales [576, 224] u8",
    576 * 224 * 17,
  ],
];

t.test("an encoding has the bytes of the tensors in files", (t) => {
  for (const [encoding, tensors, bytes] of TENSORS) {
    t.equal(
      encodedBytes(encoding, { rows: 576, columns: 7168 }),
      bytes,
      tensors,
    );
  }
  t.end();
});

t.test("a quantization configuration selects the packed tensors", (t) => {
  const facts = factsOf("qwen3-30b-a3b");
  const param = (end: string) => facts.find(({ name }) => name.endsWith(end))!;
  const awq = readStoredAs({
    torch_dtype: "float16",
    quantization_config: {
      quant_method: "awq",
      bits: 4,
      group_size: 64,
      zero_point: true,
      modules_to_not_convert: ["model.layers.*.self_attn"],
    },
  }, undefined);
  t.strictSame(awq.of(param("layers.0.mlp.experts.{expert}.up_proj.weight")), {
    name: "awq",
    bits: 4,
    group: 64,
    zeros: true,
  });
  for (
    const skipped of [
      "0.self_attn.q_proj.weight",
      "lm_head.weight",
      "embed_tokens.weight",
      "0.mlp.gate.weight",
      "0.input_layernorm.weight",
    ]
  ) t.strictSame(awq.of(param(skipped)), { name: "f16" }, skipped);
  const packed = readStoredAs({
    quantization_config: {
      quant_method: "compressed-tensors",
      config_groups: {
        group_0: {
          weights: {
            num_bits: 4,
            type: "int",
            group_size: 32,
            symmetric: true,
          },
        },
      },
      ignore: ["lm_head", "re:.*self_attn.*"],
    },
  }, undefined);
  t.strictSame(packed.of(param("0.mlp.experts.{expert}.up_proj.weight")), {
    name: "int4",
    bits: 4,
    group: 32,
    zeros: false,
  });
  t.strictSame(packed.of(param("0.self_attn.q_proj.weight")), { name: "bf16" });
  t.throws(
    () =>
      readStoredAs({ quantization_config: { quant_method: "hqq" } }, undefined),
    {
      name: "DataError",
      message:
        `Cannot read config.json: 'quantization_config' is not known, 'quant_method' is "hqq". Known methods are fp8, gptq, awq, compressed-tensors, modelopt, mxfp4; or say how weights are stored with --dtype`,
    },
  );
  t.equal(
    readStoredAs({ torch_dtype: "float32" }, "fp8").of(
      param("0.mlp.experts.{expert}.up_proj.weight"),
    ).name,
    "fp8",
    "--dtype overrides the file",
  );
  t.end();
});

t.test("experts of DeepSeek-V4 are MXFP4 if 'expert_dtype' says so", (t) => {
  const facts = factsOf("deepseek-v4-flash");
  const encoding = (expertDType: string, end: string) =>
    readStoredAs({
      expert_dtype: expertDType,
      quantization_config: {
        quant_method: "fp8",
        weight_block_size: [128, 128],
      },
    }, undefined).of(facts.find(({ name }) => name.endsWith(end))!);
  const expert = "experts.{expert}.w1.weight";
  const fp8 = { name: "fp8", block: [128, 128] };
  t.strictSame(encoding("fp4", expert), { name: "mxfp4" });
  t.strictSame(encoding("fp4", "shared_experts.w1.weight"), fp8);
  t.strictSame(encoding("fp8", expert), fp8);
  t.end();
});

t.test("FP8 of compressed-tensors has a scale per row, block or matrix", (t) => {
  const encoding = (weights: { readonly [field: string]: unknown }) =>
    readQuantization({
      quant_method: "compressed-tensors",
      config_groups: {
        group_0: { weights: { type: "float", num_bits: 8, ...weights } },
      },
    })("layers.0.mlp.experts.0.up_proj");
  t.strictSame(
    encoding({ strategy: "channel" }),
    { name: "fp8", channel: true },
  );
  t.strictSame(
    encoding({ strategy: "block", block_structure: [128, 128] }),
    { name: "fp8", block: [128, 128] },
  );
  t.strictSame(encoding({ strategy: "tensor" }), { name: "fp8" });
  t.end();
});

t.test("Llama 3 scaling slows long wavelengths only", (t) => {
  const { text_config: text } = read("llama-4-scout-17b-16e");
  const frequencies = (factors: { readonly [key: string]: number }) => {
    const { decoder } = publishedModel({
      ...text as { readonly [key: string]: unknown },
      architectures: ["Llama4ForCausalLM"],
      rope_scaling: {
        rope_type: "llama3",
        factor: 16,
        original_max_position_embeddings: 8192,
        ...factors,
      },
    });
    return (decoder as unknown as {
      readonly rotary: { readonly inverseFrequencies: readonly number[] };
    }).rotary.inverseFrequencies;
  };
  const scout = frequencies({ low_freq_factor: 1, high_freq_factor: 1 });
  const wide = frequencies({ low_freq_factor: 1, high_freq_factor: 4 });
  for (let i = 0; i < 64; i++) {
    const plain = 500000 ** (-i / 64);
    const turns = 8192 * plain / (2 * Math.PI);
    t.equal(scout[i], turns < 1 ? plain / 16 : plain, `pair ${i}`);
    const mix = Math.min(1, Math.max(0, (turns - 1) / 3));
    t.ok(
      Math.abs(wide[i]! / (plain * (mix + (1 - mix) / 16)) - 1) < 1e-12,
      `pair ${i} of a wider band`,
    );
  }
  t.end();
});
