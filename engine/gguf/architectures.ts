/** Architectures of GGUF files, one row each: fields of config.json and tensor names. */

import { DataError } from "../../spec/errors.ts";
import { shown } from "../../spec/shown.ts";
import { type GgufHeader, type GgufKeys, numberOf } from "./header.ts";

/** Mapping from a tensor of llama.cpp to tensors of a checkpoint. */
export interface TensorName {
  /** `{layer}` and, for stacked experts, `{expert}` are replaced by numbers. */
  readonly name: string;
  /** Rows are in the order of interleaved rotary dims: the key with their number of heads. */
  readonly interleaved?: "head_count" | "head_count_kv";
  /** A vector that is a matrix of one row in a checkpoint. */
  readonly row?: true;
}

/** A row of the table. */
export interface GgufArchitecture {
  /** Name of the architecture in config.json. */
  readonly architecture: string;
  /** Fields of config.json besides the common ones. */
  readonly config: (keys: Keys) => { readonly [field: string]: unknown };
  /** Tensor names that extend or override the common ones, without `blk.N.` and `.weight`. */
  readonly tensors: { readonly [name: string]: string | TensorName };
}

/** Numbers of keys under the name of the architecture. */
export interface Keys {
  readonly all: GgufKeys;
  /** Layers without experts. */
  readonly dense: readonly number[];
  /** Undefined if the key is missing. */
  number(key: string): number | undefined;
}

const ATTENTION = {
  attn_norm: "input_layernorm",
  attn_q: "self_attn.q_proj",
  attn_k: "self_attn.k_proj",
  attn_v: "self_attn.v_proj",
  attn_output: "self_attn.o_proj",
  attn_q_norm: "self_attn.q_norm",
  attn_k_norm: "self_attn.k_norm",
  ffn_norm: "post_attention_layernorm",
} as const;

const EXPERTS = {
  ffn_gate_inp: "mlp.gate",
  ffn_gate_exps: "mlp.experts.{expert}.gate_proj",
  ffn_up_exps: "mlp.experts.{expert}.up_proj",
  ffn_down_exps: "mlp.experts.{expert}.down_proj",
} as const;

const DENSE = {
  ffn_gate: "mlp.gate_proj",
  ffn_up: "mlp.up_proj",
  ffn_down: "mlp.down_proj",
} as const;

/** The table, by `general.architecture`. */
const ARCHITECTURES: { readonly [name: string]: GgufArchitecture } = {
  llama: {
    architecture: "MixtralForCausalLM",
    config: ({ number }) => ({
      intermediate_size: number("expert_feed_forward_length") ??
        number("feed_forward_length"),
      num_local_experts: number("expert_count"),
    }),
    tensors: {
      attn_q: { name: "self_attn.q_proj", interleaved: "head_count" },
      attn_k: { name: "self_attn.k_proj", interleaved: "head_count_kv" },
      ffn_gate_inp: "block_sparse_moe.gate",
      ffn_gate_exps: "block_sparse_moe.experts.{expert}.w1",
      ffn_up_exps: "block_sparse_moe.experts.{expert}.w3",
      ffn_down_exps: "block_sparse_moe.experts.{expert}.w2",
    },
  },
  olmoe: {
    architecture: "OlmoeForCausalLM",
    config: ({ number }) => ({
      intermediate_size: number("expert_feed_forward_length") ??
        number("feed_forward_length"),
      num_experts: number("expert_count"),
      norm_topk_prob: false,
    }),
    tensors: EXPERTS,
  },
  qwen2moe: {
    architecture: "Qwen2MoeForCausalLM",
    config: ({ number, dense }) => ({
      mlp_only_layers: dense,
      intermediate_size: number("feed_forward_length"),
      moe_intermediate_size: number("expert_feed_forward_length"),
      shared_expert_intermediate_size: number(
        "expert_shared_feed_forward_length",
      ),
      num_experts: number("expert_count"),
      norm_topk_prob: false,
    }),
    tensors: {
      ...EXPERTS,
      ...DENSE,
      ffn_gate_inp_shexp: { name: "mlp.shared_expert_gate", row: true },
      ffn_gate_shexp: "mlp.shared_expert.gate_proj",
      ffn_up_shexp: "mlp.shared_expert.up_proj",
      ffn_down_shexp: "mlp.shared_expert.down_proj",
    },
  },
  qwen3moe: {
    architecture: "Qwen3MoeForCausalLM",
    config: ({ number, dense }) => ({
      mlp_only_layers: dense,
      intermediate_size: number("feed_forward_length"),
      moe_intermediate_size: number("expert_feed_forward_length"),
      num_experts: number("expert_count"),
      norm_topk_prob: true,
    }),
    tensors: { ...EXPERTS, ...DENSE },
  },
};

/** Tensors outside of layers. */
const OUTER: { readonly [name: string]: string } = {
  "token_embd.weight": "model.embed_tokens.weight",
  "output_norm.weight": "model.norm.weight",
  "output.weight": "lm_head.weight",
};

/** The row of a file. Throws DataError for an unsupported architecture. */
export function architectureOf(
  path: string,
  { keys, tensors }: GgufHeader,
): { readonly row: GgufArchitecture; readonly keys: Keys } {
  const name = keys["general.architecture"];
  const row = typeof name === "string" && Object.hasOwn(ARCHITECTURES, name)
    ? ARCHITECTURES[name]
    : undefined;
  const dense = name === "llama" &&
    (numberOf(keys, "llama.expert_count") ?? 0) === 0;
  if (row === undefined || dense) {
    throw new DataError(
      `Cannot open '${path}': its architecture is '${shown(String(name))}'${
        dense ? " without experts" : ""
      }, which is not read. Known ones are ${
        Object.keys(ARCHITECTURES).join(", ")
      }`,
    );
  }
  return {
    row,
    keys: {
      all: keys,
      dense: tensors.flatMap((tensor) => {
        const [, layer] = /^blk\.(\d+)\.ffn_gate\.weight$/.exec(tensor.name) ??
          [];
        return layer === undefined ? [] : [Number(layer)];
      }),
      number: (key) => numberOf(keys, `${name}.${key}`),
    },
  };
}

/**
 * The checkpoint name of a tensor of llama.cpp, with the number of the layer. Undefined for a tensor that no model has.
 */
export function checkpointName(
  row: GgufArchitecture,
  name: string,
): TensorName | undefined {
  const outer = OUTER[name];
  if (outer !== undefined) return { name: outer };
  const [, layer, of = "", ending] =
    /^blk\.(\d+)\.(\w+)\.(weight|bias)$/.exec(name) ?? [];
  const names: GgufArchitecture["tensors"] = { ...ATTENTION, ...row.tensors };
  const found = Object.hasOwn(names, of) ? names[of] : undefined;
  if (found === undefined) return undefined;
  const entry = typeof found === "string" ? { name: found } : found;
  return { ...entry, name: `model.layers.${layer}.${entry.name}.${ending}` };
}

/** The config.json of a file. */
export function configOf(
  path: string,
  header: GgufHeader,
): { readonly [field: string]: unknown } {
  const { row, keys } = architectureOf(path, header);
  const { number } = keys;
  const tokens = keys.all["tokenizer.ggml.tokens"];
  const config = {
    architectures: [row.architecture],
    num_hidden_layers: number("block_count"),
    hidden_size: number("embedding_length"),
    num_attention_heads: number("attention.head_count"),
    num_key_value_heads: number("attention.head_count_kv"),
    head_dim: number("attention.key_length"),
    rms_norm_eps: number("attention.layer_norm_rms_epsilon"),
    rope_theta: number("rope.freq_base"),
    max_position_embeddings: number("context_length"),
    num_experts_per_tok: number("expert_used_count"),
    vocab_size: number("vocab_size") ??
      (Array.isArray(tokens) ? tokens.length : undefined),
    tie_word_embeddings: !header.tensors.some(({ name }) =>
      name === "output.weight"
    ),
    sliding_window: number("attention.sliding_window"),
    ...row.config(keys),
    bos_token_id: numberOf(keys.all, "tokenizer.ggml.bos_token_id"),
    eos_token_id: numberOf(keys.all, "tokenizer.ggml.eos_token_id"),
  };
  return Object.fromEntries(
    Object.entries(config).filter(([, value]) => value !== undefined),
  );
}
