/** A small Mixtral with random weights in two formats: a checkpoint folder, and a GGUF file for llama.cpp. */

import { type HostTensor, writeSafetensors } from "../../runtime/mod.ts";
import { randomValues } from "../session.ts";
import { type GgufTensor, vocabularyKeys, writeGguf } from "./gguf.ts";
import type { GgufValue } from "../../engine/gguf/write.ts";

/** Sizes of the decoder. */
export const DECODER = {
  layers: 4,
  embed: 256,
  ffn: 512,
  heads: 4,
  kvHeads: 2,
  experts: 8,
  topK: 2,
  context: 8192,
  epsilon: 1e-5,
  theta: 10000,
  // Three control tokens, the bytes, and words up to a multiple of 8.
  vocabulary: 264,
};

const HEAD_DIM = DECODER.embed / DECODER.heads;

/** Returns the files of the decoder by name: those of the checkpoint folder, and `model.gguf`. */
export function decoderFiles(): { [name: string]: Uint8Array } {
  const published: { [name: string]: HostTensor } = {};
  const gguf: { [name: string]: GgufTensor } = {};
  let seed = 0;
  const made = (name: string, shape: readonly number[], scale?: number) => {
    const elements = shape.reduce((product, size) => product * size, 1);
    const one = shape.length === 1;
    const factor = scale ?? Math.sqrt(3 / shape.at(-1)!);
    const data = randomValues(elements, ++seed)
      .map((value) => one ? 1 + value / 4 : value * factor);
    published[name] = { dtype: "f32", shape, data };
    return { shape, data };
  };
  const { layers, embed, ffn, experts, vocabulary } = DECODER;
  const keyValue = DECODER.kvHeads * HEAD_DIM;
  gguf["token_embd.weight"] = made(
    "model.embed_tokens.weight",
    [vocabulary, embed],
    1,
  );
  for (let i = 0; i < layers; i++) {
    const [from, to] = [`model.layers.${i}`, `blk.${i}`];
    const copy = (
      [theirs, ours]: readonly [string, string],
      ...shape: number[]
    ) => gguf[`${to}.${theirs}.weight`] = made(`${from}.${ours}.weight`, shape);
    copy(["attn_norm", "input_layernorm"], embed);
    const q = made(`${from}.self_attn.q_proj.weight`, [embed, embed]);
    const k = made(`${from}.self_attn.k_proj.weight`, [keyValue, embed]);
    gguf[`${to}.attn_q.weight`] = pairRows(q);
    gguf[`${to}.attn_k.weight`] = pairRows(k);
    copy(["attn_v", "self_attn.v_proj"], keyValue, embed);
    copy(["attn_output", "self_attn.o_proj"], embed, embed);
    copy(["ffn_norm", "post_attention_layernorm"], embed);
    copy(["ffn_gate_inp", "block_sparse_moe.gate"], experts, embed);
    const stacked = (
      [theirs, ours]: readonly [string, string],
      shape: readonly number[],
    ) => {
      const each = Array.from(
        { length: experts },
        (_, e) =>
          made(`${from}.block_sparse_moe.experts.${e}.${ours}.weight`, shape),
      );
      gguf[`${to}.${theirs}.weight`] = stack(each);
    };
    stacked(["ffn_gate_exps", "w1"], [ffn, embed]);
    stacked(["ffn_up_exps", "w3"], [ffn, embed]);
    stacked(["ffn_down_exps", "w2"], [embed, ffn]);
  }
  gguf["output_norm.weight"] = made("model.norm.weight", [embed]);
  gguf["output.weight"] = made("lm_head.weight", [vocabulary, embed], 0.25);
  return {
    "config.json": Buffer.from(JSON.stringify(config())),
    "model.safetensors": writeSafetensors(published),
    "model.gguf": Buffer.concat([...writeGguf(ggufKeys(), gguf)]),
  };
}

function config(): object {
  return {
    architectures: ["MixtralForCausalLM"],
    model_type: "mixtral",
    hidden_act: "silu",
    hidden_size: DECODER.embed,
    intermediate_size: DECODER.ffn,
    num_hidden_layers: DECODER.layers,
    num_attention_heads: DECODER.heads,
    num_key_value_heads: DECODER.kvHeads,
    num_local_experts: DECODER.experts,
    num_experts_per_tok: DECODER.topK,
    max_position_embeddings: DECODER.context,
    rms_norm_eps: DECODER.epsilon,
    rope_theta: DECODER.theta,
    sliding_window: null,
    tie_word_embeddings: false,
    vocab_size: DECODER.vocabulary,
  };
}

// Returns the keys that llama.cpp requires.
function ggufKeys(): { readonly [key: string]: GgufValue } {
  return {
    "general.architecture": { text: "llama" },
    "general.name": { text: "small mixture of experts" },
    "general.alignment": { u32: 32 },
    "llama.block_count": { u32: DECODER.layers },
    "llama.context_length": { u32: DECODER.context },
    "llama.embedding_length": { u32: DECODER.embed },
    "llama.feed_forward_length": { u32: DECODER.ffn },
    "llama.attention.head_count": { u32: DECODER.heads },
    "llama.attention.head_count_kv": { u32: DECODER.kvHeads },
    "llama.attention.layer_norm_rms_epsilon": { f32: DECODER.epsilon },
    "llama.rope.freq_base": { f32: DECODER.theta },
    "llama.rope.dimension_count": { u32: HEAD_DIM },
    "llama.expert_count": { u32: DECODER.experts },
    "llama.expert_used_count": { u32: DECODER.topK },
    "llama.vocab_size": { u32: DECODER.vocabulary },
    ...vocabularyKeys(DECODER.vocabulary),
  };
}

/**
 * Reorders rows: llama.cpp rotates neighbouring rows of a head together; the published order puts the second halves
 * after the first ones.
 */
function pairRows({ shape, data }: GgufTensor): GgufTensor {
  const [rows, columns] = shape as [number, number];
  const half = HEAD_DIM / 2;
  const moved = new Float32Array(data.length);
  for (let row = 0; row < rows; row++) {
    const at = row % HEAD_DIM;
    const to = row - at + 2 * (at % half) + Math.floor(at / half);
    moved.set(
      data.subarray(row * columns, (row + 1) * columns),
      to * columns,
    );
  }
  return { shape, data: moved };
}

function stack(each: readonly GgufTensor[]): GgufTensor {
  const size = each[0]!.data.length;
  const data = new Float32Array(each.length * size);
  each.forEach((one, i) => data.set(one.data, i * size));
  return { shape: [each.length, ...each[0]!.shape], data };
}
