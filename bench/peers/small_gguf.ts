/** A small GGUF file of OLMoE's architecture whose matrices rotate over all types in blocks, the same each time. */

import type { GgufValues } from "../../engine/gguf/write.ts";
import { writeFileSync } from "node:fs";
import {
  type GgufData,
  type GgufTensor,
  vocabularyKeys,
  writeGguf,
} from "./gguf.ts";
import { BLOCK_TYPES, blocksOf, bytesFrom, valuesOf } from "./gguf_blocks.ts";

const [LAYERS, EXPERTS] = [2, 4];

/** Columns of matrices by default: one block of the longest types. */
const WIDTH = 256;

/** Tokens of its vocabulary. */
export const SMALL_VOCABULARY = 320;

/** Its keys without a vocabulary. Matrices have `width` columns. */
export function smallKeys(width = WIDTH): GgufValues {
  return {
    "general.architecture": { text: "olmoe" },
    "olmoe.block_count": { u32: LAYERS },
    "olmoe.context_length": { u32: 64 },
    "olmoe.embedding_length": { u32: width },
    "olmoe.feed_forward_length": { u32: width },
    "olmoe.expert_count": { u32: EXPERTS },
    "olmoe.expert_used_count": { u32: 2 },
    "olmoe.attention.head_count": { u32: 4 },
    "olmoe.attention.head_count_kv": { u32: 4 },
    "olmoe.attention.layer_norm_rms_epsilon": { f32: 1e-5 },
    "olmoe.rope.freq_base": { f32: 10000 },
  };
}

/** The matrices of a layer, and of its experts. */
const MATRICES = ["attn_q", "attn_k", "attn_v", "attn_output"];
const STACKED = ["ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"];

/**
 * Writes the file, and to `plain` the same numbers in f32. Matrices have `width` columns, and all types whose blocks
 * divide them.
 */
export function writeSmallGguf(
  blocks: string,
  { plain, width = WIDTH }: {
    readonly plain?: string;
    readonly width?: number;
  } = {},
): void {
  const types = BLOCK_TYPES.filter(({ elements }) => width % elements === 0);
  const stored: { [name: string]: GgufTensor<GgufData> } = {};
  const decoded: { [name: string]: GgufTensor<GgufData> } = {};
  let count = 0;
  const put = (name: string, ...shape: number[]) => {
    const type = types[count++ % types.length]!;
    const elements = shape.reduce((n, size) => n * size, 1);
    const raw = blocksOf(type, elements / type.elements, count);
    stored[name] = { shape, data: { type: type.number, blocks: raw } };
    if (plain !== undefined) {
      decoded[name] = { shape, data: valuesOf(type, raw) };
    }
  };
  const float = (name: string, ...shape: number[]) => {
    const elements = shape.reduce((n, size) => n * size, 1);
    const bytes = bytesFrom(++count, elements);
    const data = Float32Array.from(
      bytes,
      (byte) => shape.length === 1 ? 1 + byte / 1000 : (byte - 128) / 500,
    );
    stored[name] = decoded[name] = { shape, data };
  };
  put("token_embd.weight", SMALL_VOCABULARY, width);
  for (let i = 0; i < LAYERS; i++) {
    for (const name of MATRICES) put(`blk.${i}.${name}.weight`, width, width);
    for (const name of STACKED) {
      put(`blk.${i}.${name}.weight`, EXPERTS, width, width);
    }
    float(`blk.${i}.ffn_gate_inp.weight`, EXPERTS, width);
    for (
      const name of ["attn_norm", "ffn_norm", "attn_q_norm", "attn_k_norm"]
    ) {
      float(`blk.${i}.${name}.weight`, width);
    }
  }
  float("output_norm.weight", width);
  put("output.weight", SMALL_VOCABULARY, width);
  const keys = { ...smallKeys(width), ...vocabularyKeys(SMALL_VOCABULARY) };
  writeFileSync(blocks, Buffer.concat([...writeGguf(keys, stored)]));
  if (plain !== undefined) {
    writeFileSync(plain, Buffer.concat([...writeGguf(keys, decoded)]));
  }
}
