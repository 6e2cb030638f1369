/** A checkpoint with OLMoE's shape in bf16 in the Hugging Face layout, with random weights. */

import { randomValues } from "../session.ts";

const EMBED = 2048,
  FFN = 1024,
  HEADS = 16,
  EXPERTS = 64,
  VOCABULARY = 50304,
  CHOICES = 8;

/** Random numbers of all matrices. Each matrix starts at a different position. */
const POOL = 1 << 22;

/** A tensor in bf16, or of bytes. */
export interface Tensor {
  readonly name: string;
  readonly shape: readonly number[];
  readonly dtype?: "U8";
}

/** Bytes of a tensor in a file. */
export function tensorBytes({ shape, dtype }: Tensor): number {
  return (dtype === "U8" ? 1 : 2) * shape.reduce((a, b) => a * b);
}

/**
 * Returns the bytes of weights that a one-token step reads. It excludes the embedding table, of which only a row is
 * read.
 */
export function stepBytes(layers: number): number {
  const layer = EMBED * (4 * EMBED + EXPERTS + 3 * FFN * CHOICES);
  return 2 * (layers * layer + VOCABULARY * EMBED);
}

/** Returns the bytes of keys and values per position, for elements of the given size. */
export function cacheBytes(layers: number, width: number): number {
  return 2 * layers * EMBED * width;
}

/** Writes the files of a checkpoint with the given number of layers. */
export function writeOlmoe(
  layers: number,
  { write }: {
    write(name: string, parts: Iterable<Uint8Array>): void;
  },
): void {
  const tensors = tensorsOf(layers);
  write("model.safetensors", partsOf(tensors));
  const config = {
    architectures: ["OlmoeForCausalLM"],
    model_type: "olmoe",
    hidden_act: "silu",
    hidden_size: EMBED,
    intermediate_size: FFN,
    num_attention_heads: HEADS,
    num_key_value_heads: HEADS,
    num_experts: EXPERTS,
    num_experts_per_tok: CHOICES,
    norm_topk_prob: false,
    num_hidden_layers: layers,
    vocab_size: VOCABULARY,
    max_position_embeddings: 4096,
    rms_norm_eps: 1e-5,
    rope_theta: 10000,
    rope_scaling: null,
    clip_qkv: null,
    attention_bias: false,
    tie_word_embeddings: false,
    bos_token_id: null,
    eos_token_id: 50279,
    torch_dtype: "bfloat16",
  };
  write("config.json", [Buffer.from(JSON.stringify(config))]);
}

function tensorsOf(layers: number): Tensor[] {
  const tensors: Tensor[] = [
    { name: "model.embed_tokens.weight", shape: [VOCABULARY, EMBED] },
    { name: "model.norm.weight", shape: [EMBED] },
    { name: "lm_head.weight", shape: [VOCABULARY, EMBED] },
  ];
  for (let i = 0; i < layers; i++) {
    const add = (name: string, ...shape: number[]) =>
      tensors.push({ name: `model.layers.${i}.${name}.weight`, shape });
    for (const n of ["q", "k", "v", "o"]) {
      add(`self_attn.${n}_proj`, EMBED, EMBED);
    }
    for (const n of ["self_attn.q_norm", "self_attn.k_norm"]) add(n, EMBED);
    for (const n of ["input", "post_attention"]) add(`${n}_layernorm`, EMBED);
    add("mlp.gate", EXPERTS, EMBED);
    for (let e = 0; e < EXPERTS; e++) {
      add(`mlp.experts.${e}.gate_proj`, FFN, EMBED);
      add(`mlp.experts.${e}.up_proj`, FFN, EMBED);
      add(`mlp.experts.${e}.down_proj`, EMBED, FFN);
    }
  }
  // Sorted by name, as in the file.
  return tensors.sort((a, b) => a.name < b.name ? -1 : 1);
}

/** Yields the parts of a safetensors file with random numbers. */
export function* partsOf(tensors: readonly Tensor[]): Iterable<Uint8Array> {
  let offset = 0;
  const header = Object.fromEntries(tensors.map((tensor) => {
    const { name, shape, dtype = "BF16" } = tensor;
    const data_offsets = [offset, offset += tensorBytes(tensor)];
    return [name, { dtype, shape, data_offsets }];
  }));
  const text = JSON.stringify(header);
  const padded = Buffer.from(text.padEnd(Math.ceil(text.length / 8) * 8));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(padded.length));
  yield length;
  yield padded;
  const matrix = bf16(randomValues(POOL, 1).map((x) => x * 0.03));
  const norm = bf16(randomValues(4 * EMBED, 2).map((x) => 1 + x / 4));
  // Exponents of 2^-7 and 2^-6 in E8M0.
  const scales = Uint8Array.from(
    randomValues(1 << 16, 3),
    (x) => x < 0 ? 120 : 121,
  );
  for (const [i, tensor] of tensors.entries()) {
    const bytes = tensorBytes(tensor);
    const pool = tensor.name.endsWith("_scales") ? scales : matrix;
    if (bytes <= norm.length) yield norm.subarray(0, bytes);
    else {
      // A different start for every tensor, and a period that is not a multiple of a row.
      let at = (i * 7919 * 2) % pool.length;
      for (let done = 0; done < bytes;) {
        const part = pool.subarray(
          at,
          at + Math.min(bytes - done, pool.length - 2 - at),
        );
        yield part;
        done += part.length;
        at = 0;
      }
    }
  }
}

function bf16(values: Float32Array): Uint8Array {
  const words = new Uint32Array(values.buffer);
  return new Uint8Array(Uint16Array.from(words, (word) => word >>> 16).buffer);
}
