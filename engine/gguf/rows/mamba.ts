/**
 * Rows of models with Mamba-2 layers between others: Granite 4 and Nemotron-H. Decays are stored as -exp(A_log).
 */

import type { GgufArchitecture } from "../architecture.ts";
import {
  GRANITE_FIELDS,
  GRANITE_FUSED,
  GRANITE_TENSORS,
} from "../common_names.ts";
import { type GgufHeader, maxOf, numbersOf } from "../header.ts";
import { unrepresentable } from "../unrepresentable.ts";
import type { GgufValues } from "../write.ts";

type Config = { readonly [field: string]: unknown };

/** The key that says whether queries and keys are rotated. */
const ROTATED = "rope.scaling.finetuned";

/** Tensors of a Mamba-2 layer in a block of a checkpoint. */
function mambaTensors(block: string): GgufArchitecture["tensors"] {
  return {
    ssm_in: `${block}.in_proj`,
    ssm_conv1d: { name: `${block}.conv1d`, middle: true },
    ssm_dt: { name: `${block}.dt_bias`, bare: "bias" },
    ssm_a: {
      name: `${block}.A_log`,
      bare: "",
      values: "decay",
      filed: "column",
    },
    ssm_d: { name: `${block}.D`, bare: "", filed: "column" },
    ssm_norm: { name: `${block}.norm`, filed: "groups" },
    ssm_out: `${block}.out_proj`,
  };
}

/** Granite 4, hybrid. */
export const GRANITE_HYBRID: GgufArchitecture = {
  architecture: "GraniteMoeHybridForCausalLM",
  fields: {
    ...GRANITE_FIELDS,
    num_key_value_heads: [],
    shared_intermediate_size: "expert_shared_feed_forward_length",
    mamba_d_conv: "ssm.conv_kernel",
    mamba_d_state: "ssm.state_size",
    mamba_n_groups: "ssm.group_count",
    mamba_n_heads: "ssm.time_step_rank",
  },
  constants: {
    attention_bias: false,
    fused_experts: false,
    mamba_conv_bias: true,
    mamba_proj_bias: false,
  },
  equivalents: { fused_experts: true },
  products: { "ssm.inner_size": ["mamba_expand", "hidden_size"] },
  listsKeyHeads: ["full_attention", "linear_attention"],
  ties: true,
  tensors: {
    ...GRANITE_TENSORS,
    ffn_gate_shexp: "shared_mlp.gate_proj",
    ffn_up_shexp: "shared_mlp.up_proj",
    ffn_down_shexp: "shared_mlp.down_proj",
    ...mambaTensors("mamba"),
  },
  fused: {
    ...GRANITE_FUSED,
    "shared_mlp.input_linear.weight": {
      parts: ["shared_mlp.gate_proj.weight", "shared_mlp.up_proj.weight"],
    },
    "shared_mlp.output_linear.weight": {
      parts: ["shared_mlp.down_proj.weight"],
    },
  },
  config: { read, write },
};

function read(name: string, { keys }: GgufHeader): Config {
  const rotated = keys[`${name}.${ROTATED}`] !== false;
  return { position_embedding_type: rotated ? "rope" : "nope" };
}

function write(_: string, config: ReadonlyMap<string, unknown>): GgufValues {
  const rotated = config.get("position_embedding_type") === "rope";
  return { [ROTATED]: { bool: rotated } };
}

/** Key heads of each layer, and the width of its feed-forward block. Both are 0 in Mamba-2 layers. */
const [KEY_HEADS, WIDTHS] = ["attention.head_count_kv", "feed_forward_length"];

/** Nemotron-H with experts: each layer is one block. */
export const NEMOTRON_H: GgufArchitecture = {
  architecture: "NemotronHForCausalLM",
  layers: "backbone.layers",
  fields: {
    num_key_value_heads: [],
    rms_norm_eps: [],
    layer_norm_epsilon: "attention.layer_norm_rms_epsilon",
    moe_intermediate_size: "expert_feed_forward_length",
    moe_shared_expert_intermediate_size: "expert_shared_feed_forward_length",
    n_routed_experts: "expert_count",
    n_shared_experts: "expert_shared_count",
    n_group: "expert_group_count",
    topk_group: "expert_group_used_count",
    norm_topk_prob: "expert_weights_norm",
    routed_scaling_factor: "expert_weights_scale",
    conv_kernel: "ssm.conv_kernel",
    ssm_state_size: "ssm.state_size",
    n_groups: "ssm.group_count",
    mamba_num_heads: "ssm.time_step_rank",
    moe_latent_size: "moe_latent_size",
  },
  constants: {
    attention_bias: false,
    mlp_bias: false,
    mamba_proj_bias: false,
    use_bias: false,
    use_conv_bias: true,
    mlp_hidden_act: "relu2",
    mamba_hidden_act: "silu",
  },
  products: { "ssm.inner_size": ["mamba_head_dim", "mamba_num_heads"] },
  tensors: {
    attn_norm: "norm",
    attn_q: "mixer.q_proj",
    attn_k: "mixer.k_proj",
    attn_v: "mixer.v_proj",
    attn_output: "mixer.o_proj",
    ffn_gate_inp: "mixer.gate",
    ffn_up_exps: "mixer.experts.{expert}.up_proj",
    ffn_down_exps: "mixer.experts.{expert}.down_proj",
    ffn_latent_down: "mixer.fc1_latent_proj",
    ffn_latent_up: "mixer.fc2_latent_proj",
    ffn_up_shexp: "mixer.shared_experts.up_proj",
    ffn_down_shexp: "mixer.shared_experts.down_proj",
    exp_probs_b: { name: "mixer.gate.e_score_correction_bias", bare: "bias" },
    ...mambaTensors("mixer"),
  },
  outer: {
    "token_embd.weight": {
      name: "backbone.embeddings.weight",
      also: "backbone.embedding.weight",
    },
    "output_norm.weight": "backbone.norm_f.weight",
  },
  config: { read: readBlocks, write: writeBlocks },
};

function readBlocks(name: string, { keys }: GgufHeader): Config {
  const heads = numbersOf(keys, `${name}.${KEY_HEADS}`);
  const widths = numbersOf(keys, `${name}.${WIDTHS}`);
  return {
    layers_block_type: widths.map((width, layer) =>
      width > 0 ? "moe" : heads[layer]! > 0 ? "attention" : "mamba"
    ),
    num_key_value_heads: maxOf(keys, `${name}.${KEY_HEADS}`),
  };
}

function writeBlocks(
  name: string,
  config: ReadonlyMap<string, unknown>,
): GgufValues {
  const kinds = (config.get("layers_block_type") ??
    [...String(config.get("hybrid_override_pattern"))]) as readonly string[];
  if (kinds.some((kind) => kind === "mlp" || kind === "-")) {
    throw unrepresentable(name, "layers_block_type", "mlp");
  }
  const perLayer = (is: RegExp, field: string) => ({
    i32s: kinds.map((kind) => is.test(kind) ? Number(config.get(field)) : 0),
  });
  return {
    block_count: { u32: kinds.length },
    // llama.cpp requires this key, although all norms are RMS norms.
    "attention.layer_norm_epsilon": {
      f32: Number(config.get("layer_norm_epsilon")),
    },
    [KEY_HEADS]: perLayer(
      /^(\*|attention|full_attention)$/,
      "num_key_value_heads",
    ),
    [WIDTHS]: perLayer(/^(E|moe)$/, "moe_intermediate_size"),
  };
}
