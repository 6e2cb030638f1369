/** The row of Granite 4, whose Mamba-2 layers are between attention layers. Decays are stored as -exp(A_log). */

import type { GgufArchitecture } from "./architecture.ts";
import {
  GRANITE_FIELDS,
  GRANITE_FUSED,
  GRANITE_TENSORS,
} from "./common_names.ts";
import type { GgufHeader } from "./header.ts";
import type { GgufValues } from "./write.ts";

type Config = { readonly [field: string]: unknown };

/** The key that says whether queries and keys are rotated. */
const ROTATED = "rope.scaling.finetuned";

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
    ssm_in: "mamba.in_proj",
    ssm_conv1d: { name: "mamba.conv1d", middle: true },
    ssm_dt: { name: "mamba.dt_bias", bare: "bias" },
    ssm_a: { name: "mamba.A_log", bare: "", values: "decay", filed: "column" },
    ssm_d: { name: "mamba.D", bare: "", filed: "column" },
    ssm_norm: { name: "mamba.norm", filed: "groups" },
    ssm_out: "mamba.out_proj",
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

function write(name: string, config: ReadonlyMap<string, unknown>): GgufValues {
  const rotated = config.get("position_embedding_type") === "rope";
  return { [`${name}.${ROTATED}`]: { bool: rotated } };
}
