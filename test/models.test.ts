// Published families: configurations, defaults, errors, and traced graphs.
import { existsSync, readdirSync, readFileSync } from "node:fs";
import t from "tap";
import {
  compile,
  DataError,
  dot,
  model,
  sum,
  type Tensor,
  trace,
} from "../compiler/mod.ts";
import type { Config } from "../models/mod.ts";
import { ARCHITECTURES, publishedModel } from "../models/published.ts";

const BOUNDS = { maxTokens: 8, maxSequences: 2, maxContext: 16 };

function configOf(name: string): Config {
  return JSON.parse(readFileSync(
    new URL(`references/${name}/config.json`, import.meta.url),
    "utf8",
  ));
}

const CHECKPOINTS = [
  "olmoe-16e",
  "mixtral-8e",
  "mixtral-6e",
  "qwen3moe-16e",
  "qwen3moe-8e-bf16",
  "qwen2moe-8e",
  "granitemoe-8e",
  "deepseekv2-16e",
  "deepseekv2-lite-8e",
  "deepseekv3-16e",
  "gptoss-8e",
  "llama4-8e",
  "glm4moe-16e",
  "glm4moelite-16e",
  "minimaxm2-16e",
  "dots1-16e",
  "hunyuanmoe-12e",
  "ernie45moe-16e",
  "flexolmo-10e",
  "qwen3next-16e",
  "qwen35moe-16e",
  "qwen35moe-8e-wrapped",
  "granitemoehybrid-12e",
  "nemotronh-16e",
  "lfm2moe-16e",
  "gemma4moe-12e",
  "gemma4moe-6e-wrapped",
  "gemma4moe-8e-ple",
  "longcatflash-12e",
  "deepseekv32-16e",
  "glmmoedsa-16e",
  "deepseekv4-12e",
  "solaropen-12e",
  "qwen3vlmoe-8e",
  "qwen3omnimoe-8e",
  "kimik25-12e",
  "mistral4-12e",
  "glm4vmoe-12e",
  "afmoe-12e",
  "exaonemoe-12e",
  "bailingmoe-16e",
  "mimov2-12e",
  "step3p5-12e",
  "hyv3-12e",
  "nemotronhlatent-12e",
  "laguna-12e",
  "kimilinear-12e",
  "kimik3-12e",
  "bailingmoev3-12e",
  "ernie45vlmoe-12e",
  "cohere2moe-12e",
  "cohere2moe-12e-wrapped",
  "mellum-12e",
  "axk1-12e",
  "minimaxm3-12e",
  "minimaxm3-12e-long",
];

/** Tensors of a checkpoint, from the headers of its files. */
function headerOf(name: string): { [tensor: string]: { shape: number[] } } {
  const folder = new URL(`references/${name}/`, import.meta.url);
  const files = readdirSync(folder).filter((file) =>
    /^model.*\.safetensors$/.test(file)
  );
  const headers = files.map((file) => {
    const bytes = readFileSync(new URL(file, folder));
    const length = Number(bytes.readBigUInt64LE(0));
    return JSON.parse(bytes.toString("utf8", 8, 8 + length)) as object;
  });
  return Object.assign({}, ...headers);
}

t.test("publishedModel() uses the tensor names of checkpoints", (t) => {
  for (const name of CHECKPOINTS) {
    const header = headerOf(name);
    const { decoder, build, unused } = publishedModel(configOf(name));
    const graph = trace(build(BOUNDS));
    const wanted = new Map<string, number[]>();
    for (const node of graph.nodes) {
      if (node.primitive !== "param") continue;
      const shape = node.axes.map((axis) => graph.axes[axis]!.size);
      const stacked = node.params.stack !== undefined;
      for (let i = 0; i < (stacked ? decoder.experts : 1); i++) {
        wanted.set(
          node.params.name.replace("{expert}", String(i)),
          stacked ? shape.slice(1) : shape,
        );
      }
    }
    const found = Object.entries(header)
      .filter(([k]) => k !== "__metadata__")
      .filter(([k]) => !unused.some((start) => k.startsWith(start)))
      .map(([key, { shape }]) => [key, shape]);
    t.strictSame(
      Object.fromEntries([...wanted].sort()),
      Object.fromEntries(found.sort()),
      name,
    );
  }
  t.end();
});

t.test("layers that predict further tokens are named as the others", (t) => {
  for (
    const name of [
      "deepseekv3-16e",
      "kimik25-12e",
      "glm4moe-16e",
      "glm4vmoe-12e",
    ]
  ) {
    const config = configOf(name);
    const text = config["text_config"] as Config | undefined;
    const predictors = { num_nextn_predict_layers: 1 };
    const { decoder, build, unused } = publishedModel(
      text
        ? { ...config, text_config: { ...text, ...predictors } }
        : { ...config, ...predictors },
    );
    const namesOf = (next: { readonly predicts?: boolean }) =>
      trace(build({ ...BOUNDS, next })).nodes.flatMap((node) =>
        node.primitive === "param" ? [node.params.name] : []
      );
    const known = new Set(namesOf({}));
    const further = namesOf({ predicts: true }).filter((k) => !known.has(k));
    const first = [...known].find((k) => /layers\.0\./.test(k));
    const layer = first!.replace(/layers\.0\..*/, `layers.${decoder.layers}.`);
    t.strictSame(further.filter((k) => !k.startsWith(layer)), [], name);
    t.ok(further.length > 0 && unused.includes(layer), `${name} ignores them`);
  }
  t.end();
});

t.test("configurations of both generations of transformers give the same model", (t) => {
  const read = (config: Config) => {
    const { decoder } = publishedModel(config);
    const kinds = Array.from(
      { length: decoder.layers },
      (_, layer) => decoder.kindOf(layer),
    );
    return JSON.stringify({ ...decoder, kinds });
  };
  let compared = 0;
  for (const name of CHECKPOINTS) {
    const path = `references/${name}/config.published-style.json`;
    const file = new URL(path, import.meta.url);
    if (!existsSync(file)) continue;
    const published = JSON.parse(readFileSync(file, "utf8")) as Config;
    t.equal(read(published), read(configOf(name)), name);
    compared++;
  }
  t.ok(compared > 7, `${compared} compared`);
  t.end();
});

t.test("docs/families.md has every architecture", (t) => {
  const page = readFileSync(
    new URL("../docs/families.md", import.meta.url),
    "utf8",
  );
  for (const name of ARCHITECTURES) t.match(page, `\`${name}\``);
  t.end();
});

t.test("a tied checkpoint uses its embedding twice", (t) => {
  const config = { ...configOf("olmoe-16e"), tie_word_embeddings: true };
  const graph = trace(publishedModel(config).build(BOUNDS));
  const names = graph.nodes.flatMap((node) =>
    node.primitive === "param" ? [node.params.name] : []
  );
  t.notOk(names.includes("lm_head.weight"));
  t.equal(names.filter((n) => n === "model.embed_tokens.weight").length, 1);
  t.end();
});

t.test("field names of both generations of transformers are read", (t) => {
  const { num_experts, ...rest } = configOf("qwen3moe-16e");
  const config = { ...rest, num_local_experts: num_experts };
  t.equal(publishedModel(config).decoder.experts, num_experts);
  t.end();
});

t.test("fields that change the model are applied", (t) => {
  const olmoe = { ...configOf("olmoe-16e"), clip_qkv: 3, norm_topk_prob: true };
  const { decoder, build } = publishedModel(olmoe);
  t.match(decoder, { normalize: true });
  const limits = trace(build(BOUNDS)).nodes.filter((node) =>
    node.primitive === "map" && node.params.op === "clamp"
  );
  t.equal(limits.length, 6, "one for each of q, k and v in two layers");
  const mixtral = { ...configOf("mixtral-8e"), sliding_window: 5 };
  const attention = trace(publishedModel(mixtral).build(BOUNDS)).nodes.find(
    (node) => node.primitive === "attention",
  );
  t.match(attention, { params: { window: 5 } });
  const moved = {
    ...configOf("mixtral-8e"),
    rope_theta: undefined,
    rope_parameters: { rope_type: "default", rope_theta: 16 },
  };
  t.match(publishedModel(moved).decoder, {
    rotary: { inverseFrequencies: { 4: 16 ** -0.5 } },
  });
  t.end();
});

t.test("MXFP4 requires contractions over complete blocks", async (t) => {
  const use = (size: number, f: (w: Tensor<"embed ffn", "f32">) => Tensor) =>
    model({ token: 2, embed: size, ffn: 4 }, (m) => {
      const x = m.input("x", "token embed");
      const w = m.param("w", "embed ffn");
      return { y: dot(x, w, "embed"), other: f(w) };
    });
  const weights = { w: "mxfp4" } as const;
  await t.rejects(
    compile(use(40, (w) => sum(w, "ffn")), { weights }),
    {
      name: "ModelError",
      message:
        "Cannot use parameter 'w' stored as MXFP4: it must be a table, or the right operand of a contraction, with one axis of a multiple of 32 on each rank. Store it in 16 bits",
    },
  );
  const { programs } = await compile(use(64, (w) => sum(w, "ffn")), {
    weights,
  });
  t.ok("other" in programs[0]!.outputs, "other ops decode single elements");
});

const KNOWN = ARCHITECTURES.map((name) => `'${name}'`).join(", ");

t.test("an unknown architecture is compared with the built-in ones", (t) => {
  const wrapped = configOf("qwen35moe-8e-wrapped");
  for (
    const [name, change, sentence] of [
      [
        "glm4moe-16e",
        { gate_temperature: 2 },
        "'Glm4MoeForCausalLM', which does not read 'gate_temperature'",
      ],
      [
        "hunyuanmoe-12e",
        { hidden_act: "relu", use_cla: true },
        `'HunYuanMoEV1ForCausalLM', which does not read 'eod_token_id', 'sep_token_id' and does not accept that 'use_cla' is true and 'hidden_act' is "relu"`,
      ],
      [
        "nemotronh-16e",
        {},
        "'NemotronHForCausalLM', which reads all of them",
      ],
      [
        "qwen35moe-8e-wrapped",
        { text_config: { ...wrapped["text_config"] as object, extra: 1 } },
        "'Qwen3NextForCausalLM', which does not read 'extra'",
      ],
    ] as const
  ) {
    const config = { ...configOf(name), ...change, architectures: ["Mine"] };
    t.throws(() => publishedModel(config), {
      name: "DataError",
      message:
        `Cannot build architecture 'Mine': it is not built in. Its fields are nearest to those of ${sentence}. Give the file that defines its family with --family FILE.ts, or use one of ${KNOWN}`,
    });
  }
  t.end();
});

t.test("lists of Kimi's layers that contradict each other", (t) => {
  t.throws(() =>
    publishedModel({
      architectures: ["KimiLinearForCausalLM"],
      num_hidden_layers: 4,
      linear_attn_config: { kda_layers: [1, 2, 4], full_attn_layers: [4] },
    }), {
    name: "DataError",
    message:
      "Cannot read config.json: 'kda_layers' is [1,2,4]. It must be all layers that 'full_attn_layers' does not list",
  });
  t.end();
});

t.test("the indexers of MiniMax-M3", (t) => {
  const config = configOf("minimaxm3-12e");
  const read = (change: object) =>
    publishedModel({
      ...config,
      text_config: { ...config["text_config"] as object, ...change },
    });
  const params = (change: object) =>
    trace(read(change).build(BOUNDS)).nodes.flatMap((node) =>
      node.primitive === "param" && node.params.name.includes(".index_")
        ? [node.params.name]
        : []
    );
  t.equal(params({}).length, 3 * 4);
  const dense = {
    layer_types: Array(4).fill("full_attention"),
    index_n_heads: 1,
  };
  t.equal(params(dense).length, 0);
  t.throws(() => read({ index_n_heads: 1 }), {
    message:
      "Cannot read config.json: 'index_n_heads' is 1. It must be 2, one for each of the 'num_key_value_heads'",
  });
  t.throws(() => read({ index_topk_blocks: 2, index_local_blocks: 3 }), {
    message:
      "Cannot read config.json: 'index_topk_blocks' is 2. It must be at least 3, the number of blocks that are always chosen",
  });
  for (
    const [change, state] of [
      [
        { sparse_score_type: "mean" },
        `'sparse_score_type' is "mean". It must be "max", the only one built`,
      ],
      [
        { sparse_disable_index_value: [0, 0, 1, 1] },
        "'sparse_disable_index_value' is [0,0,1,1]. It must be 1 in layers with an indexer, the only one built",
      ],
      [
        { sparse_stride: 2 },
        "'sparse_stride' is 2. It must be absent from 'sparse_attention_config'",
      ],
    ] as const
  ) {
    t.throws(() => read({ sparse_attention_config: change }), {
      message: `Cannot read config.json: ${state}`,
    });
  }
  t.end();
});

const WRONG: readonly (readonly [object, string])[] = [
  [
    { architectures: ["LlamaForCausalLM"] },
    `Cannot build architecture 'LlamaForCausalLM': it is not built in. Its fields are nearest to those of 'OlmoeForCausalLM', which reads all of them. Give the file that defines its family with --family FILE.ts, or use one of ${KNOWN}`,
  ],
  [
    { architectures: ["SwitchTransformersForConditionalGeneration"] },
    `Cannot build architecture 'SwitchTransformersForConditionalGeneration': it is not built in. Its fields are nearest to those of 'OlmoeForCausalLM', which reads all of them. Give the file that defines its family with --family FILE.ts, or use one of ${KNOWN}`,
  ],
  [
    { architectures: [] },
    `Cannot read config.json: it names no architecture. Set 'architectures' to one of ${KNOWN}`,
  ],
  [
    { num_hidden_layers: 0 },
    "Cannot read config.json: 'num_hidden_layers' is 0. It must be an integer from 1 to 512",
  ],
  [
    { hidden_size: "64" },
    `Cannot read config.json: 'hidden_size' is "64". It must be an integer from 1 to 1048576`,
  ],
  [
    { num_attention_heads: 5 },
    "Cannot read config.json: 'hidden_size' is 64, which is no multiple of 'num_attention_heads', 5. Check the file",
  ],
  [
    { num_experts_per_tok: 17 },
    "Cannot read config.json: 'num_experts_per_tok' is 17, and there are 16 experts. Check the file",
  ],
  [
    { hidden_act: "gelu" },
    `Cannot read config.json: 'hidden_act' is "gelu". It must be "silu", the only one built`,
  ],
  [
    { rope_scaling: { type: "dynamic" } },
    `Cannot read config.json: 'rope_scaling' is "dynamic". It must be of type 'default', 'yarn' or 'llama3'`,
  ],
  [
    { rms_norm_eps: -1 },
    "Cannot read config.json: 'rms_norm_eps' is -1. It must be a number above 0",
  ],
  [
    { norm_topk_prob: "no" },
    `Cannot read config.json: 'norm_topk_prob' is "no". It must be true or false`,
  ],
  [
    { num_hidden_layers: 2 ** 31 },
    "Cannot read config.json: 'num_hidden_layers' is 2147483648. It must be an integer from 1 to 512",
  ],
  [
    { num_experts: 2 ** 31 },
    "Cannot read config.json: 'num_experts' is 2147483648. It must be an integer from 1 to 65536",
  ],
  [
    { hidden_size: 1e9 },
    "Cannot read config.json: 'hidden_size' is 1000000000. It must be an integer from 1 to 1048576",
  ],
  [
    { hidden_size: 1e18 },
    "Cannot read config.json: 'hidden_size' is 1000000000000000000. It must be an integer from 1 to 1048576",
  ],
  [
    { vocab_size: 2 ** 40 },
    "Cannot read config.json: 'vocab_size' is 1099511627776. It must be an integer from 1 to 16777216",
  ],
  [
    { hidden_size: 2 ** 20, num_attention_heads: 4 },
    "Cannot read config.json: 'head_dim' is 262144. It must be an integer from 1 to 16384",
  ],
  [
    { max_position_embeddings: 2 ** 31 },
    "Cannot read config.json: 'max_position_embeddings' is 2147483648. It must be an integer from 1 to 2147483647",
  ],
  [
    { num_attention_heads: 64 },
    "Cannot read config.json: heads have 1 elements, an odd number. Check the file",
  ],
];

t.test("families reject unsupported options by name", (t) => {
  const wrong: readonly (readonly [string, object, string])[] = [
    [
      "deepseekv2-16e",
      { norm_topk_prob: true },
      "'norm_topk_prob' is true. It must be false, the only one built",
    ],
    [
      "deepseekv2-16e",
      { topk_method: "noaux_tc" },
      `'topk_method' is "noaux_tc". It must be 'greedy' or 'group_limited_greedy'`,
    ],
    [
      "deepseekv3-16e",
      { scoring_func: "softmax" },
      `'scoring_func' is "softmax". It must be "sigmoid", the only one built`,
    ],
    [
      "gptoss-8e",
      { layer_types: ["chunked_attention"] },
      `'layer_types' is ["chunked_attention"]. It must be a list of 'sliding_attention' and 'full_attention'`,
    ],
    [
      "gptoss-8e-mxfp4",
      { quantization_config: { quant_method: "fp8" } },
      `'quant_method' is "fp8". It must be "mxfp4", the only one built`,
    ],
    [
      "mixtral-8e",
      { quantization_config: { quant_method: "awq" } },
      `'quantization_config' is {"quant_method":"awq"}. It must be null, the only one built`,
    ],
    [
      "qwen2moe-8e",
      { use_sliding_window: true },
      "'use_sliding_window' is true. It must be false, the only one built",
    ],
    [
      "qwen3moe-16e",
      { attention_bias: true },
      "'attention_bias' is true. It must be false, the only one built",
    ],
    [
      "gptoss-8e",
      { swiglu_alpha: 2 },
      "'swiglu_alpha' is 2. It must be 1.702, the only one built",
    ],
    [
      "mixtral-8e",
      { partial_rotary_factor: 0.5 },
      "'partial_rotary_factor' is 0.5. It must be 1, the only one built",
    ],
    [
      "qwen3moe-8e-bf16",
      { layer_types: ["full_attention", "sliding_attention"] },
      `'layer_types' is ["full_attention","sliding_attention"]. It must be ["full_attention","full_attention"]`,
    ],
    [
      "llama4-8e",
      { layer_types: ["chunked_attention", "full_attention"] },
      `'layer_types' is ["chunked_attention","full_attention"]. It must be ["chunked_attention","chunked_attention"]`,
    ],
    [
      "qwen2moe-8e",
      { mlp_only_layers: ["1"] },
      `'mlp_only_layers' is ["1"]. It must be a list of integers`,
    ],
    [
      "nemotronh-16e",
      { layers_block_type: null, hybrid_override_pattern: undefined },
      "'layers_block_type' is null. It must be of 'M', '*', 'E' and '-', or a list of 'mamba', 'attention', 'moe' and 'mlp'",
    ],
    [
      "nemotronh-16e",
      { layers_block_type: ["constructor"] },
      "'layers_block_type' is [\"constructor\"]. It must be of 'M', '*', 'E' and '-', or a list of 'mamba', 'attention', 'moe' and 'mlp'",
    ],
    [
      "nemotronh-16e",
      { layers_block_type: "x", hybrid_override_pattern: "ME" },
      "'layers_block_type' is \"x\". It must be of 'M', '*', 'E' and '-', or a list of 'mamba', 'attention', 'moe' and 'mlp'",
    ],
    [
      "nemotronh-16e",
      { layers_block_type: null, hybrid_override_pattern: "MX" },
      "'hybrid_override_pattern' is \"MX\". It must be of 'M', '*', 'E' and '-', or a list of 'mamba', 'attention', 'moe' and 'mlp'",
    ],
    [
      "nemotronh-16e",
      { conv_kernel: 1 },
      "'conv_kernel' is 1. It must be an integer from 2 to 256",
    ],
    [
      "nemotronh-16e",
      { time_step_limit: "0" },
      `'time_step_limit' is "0". It must be from 0 to infinity, the only one built`,
    ],
    [
      "granitemoehybrid-12e",
      { mamba_d_head: "auto", mamba_n_heads: 3 },
      "'mamba_expand * hidden_size' is 128, which is no multiple of 'mamba_n_heads', 3. Check the file",
    ],
    [
      "granitemoehybrid-12e",
      { layer_types: { "0": "mamba" } },
      `'layer_types' is {"0":"mamba"}. It must be a list of 'linear_attention' and 'full_attention' and 'mamba' and 'attention'`,
    ],
    [
      "deepseekv4-12e",
      { hc_sinkhorn_iters: 1e9 },
      "'hc_sinkhorn_iters' is 1000000000. It must be an integer from 1 to 256",
    ],
    [
      "gemma4moe-12e",
      { global_head_dim: 33 },
      "'global_head_dim' is 33. It must be an even number",
    ],
    [
      "gemma4moe-12e",
      { num_global_key_value_heads: 3, attention_k_eq_v: true },
      "'num_attention_heads' is 4, which is no multiple of 'num_global_key_value_heads', 3. Check the file",
    ],
    [
      "gemma4moe-12e",
      { use_bidirectional_attention: "all" },
      `'use_bidirectional_attention' is "all". It must be null or 'vision', the only ones built`,
    ],
    [
      "gemma4moe-12e",
      { enable_moe_block: undefined },
      "'enable_moe_block' is missing. It must be true, the only one built",
    ],
    [
      "gemma4moe-8e-ple",
      { num_kv_shared_layers: 4 },
      "'num_kv_shared_layers' is 4. It must be fewer, so that a layer before them has the window of each",
    ],
    [
      "gemma4moe-8e-ple",
      { vocab_size_per_layer_input: 191 },
      "'vocab_size_per_layer_input' is 191. It must be 192, the only one built",
    ],
    [
      "deepseekv32-16e",
      { layer_types: ["full_attention"] },
      `'layer_types' is ["full_attention"]. It must be ["deepseek_sparse_attention"]`,
    ],
    [
      "deepseekv32-16e",
      { index_topk: 0 },
      "'index_topk' is 0. It must be an integer from 1 to 16777216",
    ],
    [
      "glmmoedsa-16e",
      { index_topk_pattern: "FXF" },
      `'index_topk_pattern' is "FXF". It must be a text of F and S`,
    ],
    [
      "deepseekv4-12e",
      { layer_types: undefined, compress_ratios: [0, 4, 64, 4] },
      "'compress_ratios' is [0,4,64,4]. It must be a list of 0, 4 and 128",
    ],
    [
      "deepseekv4-12e",
      { qk_rope_head_dim: 12 },
      "'qk_rope_head_dim' is 12. It must be an even part of a head",
    ],
    [
      "deepseekv4-12e",
      { scoring_func: "sigmoid" },
      `'scoring_func' is "sigmoid". It must be "sqrtsoftplus", the only one built`,
    ],
    [
      "qwen35moe-8e-wrapped",
      { text_config: [] },
      "'text_config' is []. It must be an object",
    ],
    [
      "qwen3next-16e",
      { linear_conv_kernel_dim: 1e9 },
      "'linear_conv_kernel_dim' is 1000000000. It must be an integer from 2 to 256",
    ],
    [
      "longcatflash-12e",
      { zero_expert_num: 1e9 },
      "'zero_expert_num' is 1000000000. It must be an integer from 0 to 4096",
    ],
    [
      "hunyuanmoe-12e",
      { moe_topk: [] },
      "'moe_topk' is []. It must be the same of all layers, the only one built",
    ],
    [
      "hunyuanmoe-12e",
      { moe_topk: [1, 2] },
      "'moe_topk' is [1,2]. It must be the same of all layers, the only one built",
    ],
    [
      "ernie45moe-16e",
      { moe_layer_start_index: 9 },
      "'moe_layer_start_index' is 9. It must be less than 3",
    ],
    [
      "dots1-16e",
      { mlp_layer_types: {} },
      "'mlp_layer_types' is {}. It must be a list of 'dense' and 'sparse'",
    ],
    [
      "minimaxm2-16e",
      { rotary_dim: 7 },
      "'rotary_dim' is 7. It must be an even number of a head's 16 elements",
    ],
    [
      "llama4-8e",
      { rope_scaling: { rope_type: "longrope" } },
      `'rope_scaling' is "longrope". It must be of type 'default', 'yarn' or 'llama3'`,
    ],
  ];
  for (const [name, change, state] of wrong) {
    t.throws(() => publishedModel({ ...configOf(name), ...change }), {
      name: "DataError",
      message: `Cannot read config.json: ${state}`,
    }, `${name}: ${JSON.stringify(change)}`);
  }
  t.end();
});

/** Yields the configuration once for each field, nested ones included, with `value` in its place. */
function* replaceEach(
  config: Config,
  keys: Iterable<string>,
  value: unknown,
): Generator<{ readonly key: string; readonly config: Config }> {
  for (const key of keys) {
    yield { key, config: { ...config, [key]: value } };
    const inner = config[key];
    if (typeof inner !== "object" || inner === null) continue;
    if (Array.isArray(inner)) continue;
    const nested = inner as Config;
    for (const each of replaceEach(nested, Object.keys(nested), value)) {
      yield {
        key: `${key}.${each.key}`,
        config: { ...config, [key]: each.config },
      };
    }
  }
}

t.test("a field of any value is read or rejected by a DataError", (t) => {
  const values = [
    ...[null, "constructor", true, -1, 0, 1.5, 1e9, 1e300],
    ...[[], [null], ["constructor"], {}],
  ];
  let refused = 0;
  for (const name of CHECKPOINTS) {
    const config = configOf(name);
    const { fields } = publishedModel(config);
    const keys = new Set([...fields.keys(), ...Object.keys(config)]);
    for (const value of values) {
      for (const changed of replaceEach(config, keys, value)) {
        try {
          publishedModel(changed.config);
        } catch (error) {
          refused++;
          if (error instanceof DataError) continue;
          t.fail(`${name}: ${changed.key} of ${JSON.stringify(value)}`, {
            error: String(error),
          });
        }
      }
    }
  }
  t.ok(refused > 5000, `${refused} refused`);
  t.end();
});

t.test("a misspelled field, or one of another family, is reported by both names", (t) => {
  const renamed: readonly (readonly [string, string, string])[] = [
    ["mixtral-8e", "num_local_experts", "num_experts"],
    ["olmoe-16e", "num_experts", "num_local_experts"],
    ["granitemoe-8e", "num_local_experts", "n_routed_experts"],
    ["deepseekv2-16e", "n_routed_experts", "num_experts"],
    ["qwen3moe-16e", "num_experts", "n_routed_experts"],
    ["mixtral-8e", "intermediate_size", "moe_intermediate_size"],
    ["qwen2moe-8e", "num_experts_per_tok", "moe_topk"],
    ["llama4-8e", "hidden_size", "hidden_sise"],
    ["gptoss-8e", "head_dim", "heda_dim"],
    ["qwen3moe-16e", "norm_topk_prob", "norm_topk_probs"],
    ["deepseekv3-16e", "n_group", "ngroup"],
    ["olmoe-16e", "tie_word_embeddings", "tie_word_embedding"],
  ];
  for (const [name, key, other] of renamed) {
    const { [key]: value, ...rest } = configOf(name);
    t.throws(() => publishedModel({ ...rest, [other]: value }), {
      name: "DataError",
      message:
        `Cannot read config.json: it has '${other}', and its architecture calls that '${key}'. Rename it`,
    }, `${name}: ${other}`);
    const both = { ...rest, [key]: value, [other]: value };
    t.doesNotThrow(() => publishedModel(both), `${name}: ${key} and ${other}`);
  }
  t.end();
});

t.test("layers have the attention and experts of their family", (t) => {
  const attentions = (name: string, change: object = {}) => {
    const config = { ...configOf(name), ...change };
    return trace(publishedModel(config).build(BOUNDS)).nodes.flatMap((node) =>
      node.primitive === "attention" ? [node.params] : []
    );
  };
  const windows = attentions("gptoss-8e", { layer_types: undefined });
  t.strictSame(windows.map(({ window }) => window), [
    ...[8, undefined, 8, undefined],
  ], "every other layer has a window");
  const later = {
    layer_types: undefined,
    sliding_window: undefined,
    max_window_layers: 2,
  };
  t.strictSame(
    attentions("dots1-16e", later).map(({ window }) => window),
    [undefined, undefined, 4096],
  );
  const none = { sliding_window: null };
  for (const name of ["gptoss-8e", "dots1-16e", "afmoe-12e", "exaonemoe-12e"]) {
    const found = attentions(name, none).map(({ window }) => window);
    t.ok(found.length > 1, name);
    t.strictSame(found.filter((window) => window !== undefined), [], name);
  }
  for (const name of ["laguna-12e", "mellum-12e", "gemma4moe-12e"]) {
    t.throws(() => attentions(name, none), {
      message:
        "Cannot read config.json: 'sliding_window' is null. It must be an integer, because layers have a window",
    }, name);
  }
  const all = Array(4).fill("sliding_attention");
  const sliding = attentions("gemma4moe-12e", { layer_types: all });
  const [{ window } = {}] = sliding;
  t.strictSame(
    sliding.map(({ window }) => window),
    [window, window, window, undefined],
    "the last layer has no window",
  );
  t.type(window, "number");
  const chunks = attentions("llama4-8e", { no_rope_layers: undefined });
  t.strictSame(chunks.map(({ chunk }) => chunk), [128, 128, 128, undefined]);
  const indexed = (layers: number, change: object) => {
    const { decoder } = publishedModel({
      ...configOf("glmmoedsa-16e"),
      num_hidden_layers: layers,
      layer_types: null,
      ...change,
    });
    return Array.from({ length: layers }, (_, layer) => layer)
      .filter((layer) => decoder.kindOf(layer).mixer === "indexer");
  };
  const recorded = indexed(4, {});
  t.strictSame(recorded, [0, 1, 3]);
  const untyped = { indexer_types: null };
  t.strictSame(indexed(4, { ...untyped, index_topk_freq: 2 }), recorded);
  const pattern = { ...untyped, index_topk_pattern: "FFSF" };
  t.strictSame(indexed(4, pattern), recorded);
  const published = { index_topk_freq: 4, index_skip_topk_offset: 3 };
  t.strictSame(
    indexed(12, { ...untyped, ...published }),
    [0, 1, 2, 6, 10],
    "as listed for GLM-5.2",
  );
  const [latent] = attentions("deepseekv3-16e");
  t.match(latent, { shared: true, valueDim: "latent" });
  const mscale = 0.1 * 0.8 * Math.log(4) + 1;
  t.equal(latent?.scale, mscale ** 2 / Math.sqrt(24));
  t.end();
});

t.test("publishedModel() rejects configurations that it cannot build", (t) => {
  for (const [change, message] of WRONG) {
    const config = {
      ...configOf("olmoe-16e"),
      num_key_value_heads: undefined,
      ...change,
    };
    t.throws(() => publishedModel(config), { name: "DataError", message });
  }
  t.end();
});
