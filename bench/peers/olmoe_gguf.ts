/** Converts an OLMoE checkpoint folder to a GGUF file for llama.cpp. */

import {
  closeSync,
  openSync,
  readFileSync,
  readSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import { nodeFiles } from "../../cli/files.ts";
import type { GgufValue } from "../../engine/gguf/write.ts";
import { withTensors } from "../../engine/checkpoint/tensors.ts";
import type { TensorEntry } from "../../runtime/mod.ts";
import type { DemoConfig } from "./demo.ts";
import {
  type GgufData,
  type GgufTensor,
  vocabularyKeys,
  writeGguf,
} from "./gguf.ts";

/** Weights of a layer: llama.cpp's name, this project's name, and whether each expert has one. */
const LAYER = [
  ["attn_norm", "input_layernorm"],
  ["attn_q", "self_attn.q_proj"],
  ["attn_k", "self_attn.k_proj"],
  ["attn_v", "self_attn.v_proj"],
  ["attn_output", "self_attn.o_proj"],
  ["attn_q_norm", "self_attn.q_norm"],
  ["attn_k_norm", "self_attn.k_norm"],
  ["ffn_norm", "post_attention_layernorm"],
  ["ffn_gate_inp", "mlp.gate"],
  ["ffn_gate_exps", "mlp.experts.*.gate_proj"],
  ["ffn_up_exps", "mlp.experts.*.up_proj"],
  ["ffn_down_exps", "mlp.experts.*.down_proj"],
] as const;

/**
 * Writes a checkpoint whose tensors are all bf16. Matrices are converted to f32 or unchanged. If they are unchanged,
 * llama.cpp also rounds the other factor to bf16. Norms and routers are always f32, as in llama.cpp's converter.
 */
export async function writeOlmoeGguf(
  folder: string,
  { file, matrices, vocabulary }: {
    readonly file: string;
    readonly matrices: "f32" | "bf16";
    /** Keys of the tokenizer. Default: a vocabulary that tokenizes nothing. */
    readonly vocabulary?: { readonly [key: string]: GgufValue };
  },
): Promise<void> {
  const config = JSON.parse(
    readFileSync(join(folder, "config.json"), "utf8"),
  ) as DemoConfig;
  const experts = Array.from({ length: config.num_experts }, (_, e) => e);
  const path = join(folder, "model.safetensors");
  await withTensors([path], nodeFiles(), (directory) => {
    const tensors: { [name: string]: GgufTensor<GgufData> } = {};
    const put = (theirs: string, ...ours: string[]) => {
      const entries = ours.map((name) => directory.get(`${name}.weight`)!);
      const [{ shape }] = entries as [TensorEntry];
      const dtype = shape.length === 1 || theirs.endsWith("ffn_gate_inp")
        ? "f32"
        : matrices;
      tensors[`${theirs}.weight`] = {
        shape: ours.length > 1 ? [ours.length, ...shape] : shape,
        data: { dtype, parts: () => partsOf(entries, dtype) },
      };
    };
    put("token_embd", "model.embed_tokens");
    for (let i = 0; i < config.num_hidden_layers; i++) {
      for (const [theirs, ours] of LAYER) {
        const name = `model.layers.${i}.${ours}`;
        const names = name.includes("*")
          ? experts.map((e) => name.replace("*", `${e}`))
          : [name];
        put(`blk.${i}.${theirs}`, ...names);
      }
    }
    put("output_norm", "model.norm");
    const untied = directory.has("lm_head.weight");
    put("output", untied ? "lm_head" : "model.embed_tokens");
    const descriptor = openSync(file, "w");
    try {
      for (const part of writeGguf(keysOf(config, vocabulary), tensors)) {
        writeSync(descriptor, part);
      }
    } finally {
      closeSync(descriptor);
    }
    return Promise.resolve();
  });
}

function* partsOf(
  entries: readonly TensorEntry[],
  dtype: "f32" | "bf16",
): Iterable<Uint8Array> {
  for (const { source, offset, bytes } of entries) {
    const part = new Uint8Array(bytes);
    readSync(source.descriptor!, part, { position: offset });
    const words = new Uint16Array(part.buffer);
    yield dtype === "bf16"
      ? part
      : new Uint8Array(Uint32Array.from(words, (word) => word << 16).buffer);
  }
}

// Returns the keys that llama.cpp requires.
function keysOf(
  config: DemoConfig,
  vocabulary = vocabularyKeys(config.vocab_size),
): { readonly [key: string]: GgufValue } {
  const metadata: { [key: string]: GgufValue } = {
    block_count: { u32: config.num_hidden_layers },
    context_length: { u32: config.max_position_embeddings },
    embedding_length: { u32: config.hidden_size },
    feed_forward_length: { u32: config.intermediate_size },
    "attention.head_count": { u32: config.num_attention_heads },
    "attention.head_count_kv": { u32: config.num_key_value_heads },
    "attention.layer_norm_rms_epsilon": { f32: config.rms_norm_eps },
    "rope.freq_base": { f32: config.rope_theta },
    expert_count: { u32: config.num_experts },
    expert_used_count: { u32: config.num_experts_per_tok },
    vocab_size: { u32: config.vocab_size },
  };
  return {
    "general.architecture": { text: "olmoe" },
    "general.name": { text: "a mixture of experts" },
    "general.alignment": { u32: 32 },
    ...Object.fromEntries(
      Object.entries(metadata).map(([key, value]) => [`olmoe.${key}`, value]),
    ),
    ...vocabulary,
  };
}
