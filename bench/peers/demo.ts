/** The bundled checkpoint for the peers: its weights in f32, which is exact for bf16, and the same as GGUF. */

import { readFileSync } from "node:fs";
import { openSafetensors, readTensor } from "../../runtime/mod.ts";
import { type GgufTensor, type GgufValue, writeGguf } from "./gguf.ts";

/** Where the checkpoint is stored. */
export const DEMO_FOLDER = new URL("../../examples/demo-lm/", import.meta.url);

/** What is compared on it: greedy tokens behind a prompt. */
export const DEMO_WORK = { prompt: 256, newTokens: 33 };

/** Tokens of the prompt. */
export const DEMO_PROMPT: readonly number[] = Array.from(
  { length: DEMO_WORK.prompt },
  (_, i) => 3 + i * 37 % 2000,
);

/** Sizes of an OLMoE, by the names of its config.json. */
export interface DemoConfig {
  readonly hidden_size: number;
  readonly intermediate_size: number;
  readonly max_position_embeddings: number;
  readonly num_attention_heads: number;
  readonly num_experts: number;
  readonly num_experts_per_tok: number;
  readonly num_hidden_layers: number;
  readonly num_key_value_heads: number;
  readonly rms_norm_eps: number;
  readonly rope_theta: number;
  readonly vocab_size: number;
}

/** A layer's weights, outputs outermost; experts one after the other. */
export interface DemoLayer {
  readonly norm: Float32Array;
  readonly q: Float32Array;
  readonly k: Float32Array;
  readonly v: Float32Array;
  readonly o: Float32Array;
  readonly qNorm: Float32Array;
  readonly kNorm: Float32Array;
  readonly ffnNorm: Float32Array;
  readonly router: Float32Array;
  readonly gate: readonly Float32Array[];
  readonly up: readonly Float32Array[];
  readonly down: readonly Float32Array[];
}

/** The checkpoint. */
export interface Demo {
  readonly config: DemoConfig;
  /** Also the head. */
  readonly embedding: Float32Array;
  readonly norm: Float32Array;
  readonly layers: readonly DemoLayer[];
}

/** Read the checkpoint. */
export async function readDemo(): Promise<Demo> {
  const config = JSON.parse(
    readFileSync(new URL("config.json", DEMO_FOLDER), "utf8"),
  ) as DemoConfig;
  // Not the Buffer itself, whose slices share its memory.
  const bytes = new Uint8Array(
    readFileSync(new URL("model.safetensors", DEMO_FOLDER)),
  );
  const tensors = await openSafetensors([{
    name: "model.safetensors",
    size: bytes.length,
    read: (offset, length) =>
      Promise.resolve(bytes.subarray(offset, offset + length)),
  }]);
  const f32 = async (name: string) =>
    (await readTensor(tensors.get(`model.${name}.weight`)!))
      .data as Float32Array;
  const layers: DemoLayer[] = [];
  for (let i = 0; i < config.num_hidden_layers; i++) {
    const own = (name: string) => f32(`layers.${i}.${name}`);
    const experts = (name: string) =>
      Promise.all(
        Array.from(
          { length: config.num_experts },
          (_, e) => own(`mlp.experts.${e}.${name}_proj`),
        ),
      );
    layers.push({
      norm: await own("input_layernorm"),
      q: await own("self_attn.q_proj"),
      k: await own("self_attn.k_proj"),
      v: await own("self_attn.v_proj"),
      o: await own("self_attn.o_proj"),
      qNorm: await own("self_attn.q_norm"),
      kNorm: await own("self_attn.k_norm"),
      ffnNorm: await own("post_attention_layernorm"),
      router: await own("mlp.gate"),
      gate: await experts("gate"),
      up: await experts("up"),
      down: await experts("down"),
    });
  }
  return {
    config,
    embedding: await f32("embed_tokens"),
    norm: await f32("norm"),
    layers,
  };
}

/** One matrix after the other. */
export function joined(parts: readonly Float32Array[]): Float32Array {
  const all = new Float32Array(
    parts.reduce((sum, { length }) => sum + length, 0),
  );
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

/** The checkpoint as a GGUF file for llama.cpp. */
export function demoGguf({ config, ...demo }: Demo): Uint8Array {
  const embed = config.hidden_size;
  const { intermediate_size: ffn, num_experts: experts } = config;
  const tensors: { [name: string]: GgufTensor } = {};
  const put = (name: string, data: Float32Array, ...shape: number[]) => {
    tensors[`${name}.weight`] = { shape, data };
  };
  put("token_embd", demo.embedding, config.vocab_size, embed);
  for (const [i, layer] of demo.layers.entries()) {
    const at = `blk.${i}`;
    put(`${at}.attn_norm`, layer.norm, embed);
    put(`${at}.attn_q`, layer.q, embed, embed);
    put(`${at}.attn_k`, layer.k, embed, embed);
    put(`${at}.attn_v`, layer.v, embed, embed);
    put(`${at}.attn_output`, layer.o, embed, embed);
    put(`${at}.attn_q_norm`, layer.qNorm, embed);
    put(`${at}.attn_k_norm`, layer.kNorm, embed);
    put(`${at}.ffn_norm`, layer.ffnNorm, embed);
    put(`${at}.ffn_gate_inp`, layer.router, experts, embed);
    put(`${at}.ffn_gate_exps`, joined(layer.gate), experts, ffn, embed);
    put(`${at}.ffn_up_exps`, joined(layer.up), experts, ffn, embed);
    put(`${at}.ffn_down_exps`, joined(layer.down), experts, embed, ffn);
  }
  put("output_norm", demo.norm, embed);
  put("output", demo.embedding, config.vocab_size, embed);
  return Buffer.concat(writeGguf(ggufKeys(config), tensors));
}

// What llama.cpp wants to know, and a vocabulary: nothing is tokenized, but it does not start without words for all bytes.
function ggufKeys(config: DemoConfig): { readonly [key: string]: GgufValue } {
  const bytes = Array.from(
    { length: 256 },
    (_, i) => `<0x${i.toString(16).toUpperCase().padStart(2, "0")}>`,
  );
  const control = ["<unk>", "<s>", "</s>"];
  const words = Array.from(
    { length: config.vocab_size - bytes.length - control.length },
    (_, i) => `\u2581${i}`,
  );
  const [NORMAL, UNKNOWN, CONTROL, BYTE] = [1, 2, 3, 6] as const;
  const own: { [key: string]: GgufValue } = {
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
    "general.name": { text: "the bundled checkpoint" },
    "general.alignment": { u32: 32 },
    ...Object.fromEntries(
      Object.entries(own).map(([key, value]) => [`olmoe.${key}`, value]),
    ),
    "tokenizer.ggml.model": { text: "llama" },
    "tokenizer.ggml.tokens": { texts: [...control, ...bytes, ...words] },
    "tokenizer.ggml.scores": {
      f32s: new Array<number>(config.vocab_size).fill(0),
    },
    "tokenizer.ggml.token_type": {
      i32s: [
        ...[UNKNOWN, CONTROL, CONTROL],
        ...bytes.map(() => BYTE),
        ...words.map(() => NORMAL),
      ],
    },
    "tokenizer.ggml.bos_token_id": { u32: 1 },
    "tokenizer.ggml.eos_token_id": { u32: 2 },
    "tokenizer.ggml.unknown_token_id": { u32: 0 },
  };
}
