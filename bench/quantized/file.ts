/** A GGUF file of a published width with matrices of one type, of random blocks. */

import type { GgufValues } from "../../engine/gguf/write.ts";
import { existsSync, mkdirSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { nodeFiles } from "../../cli/files.ts";
import { type BlockType, isBlockType } from "../../engine/gguf/blocks.ts";
import { GGUF_TYPES } from "../../engine/gguf/blocks.ts";
import {
  type GgufData,
  type GgufTensor,
  vocabularyKeys,
  writeGguf,
} from "../peers/gguf.ts";
import { blocksOf } from "../peers/gguf_blocks.ts";

/** Widths of published models, with heads of equal keys and values. */
const WIDTHS = {
  olmoe: { embed: 2048, ffn: 1024, experts: 64, choices: 8, heads: 16 },
  "gpt-oss": { embed: 2880, ffn: 2880, experts: 32, choices: 4, heads: 45 },
};

/** The name of a width. */
export type WidthName = keyof typeof WIDTHS;

/** Tokens of the vocabulary. */
export const VOCABULARY = 16384;

/** Blocks that all matrices are made of, each from another place on. */
const POOL = 1 << 15;

/** The type of a name, `Q8_0`, with its number. Throws where there is none. */
export function typeOf(name: string): BlockType & { readonly number: number } {
  for (const [number, type] of Object.entries(GGUF_TYPES)) {
    if (type.name === name && isBlockType(type)) {
      return { ...type, number: Number(number) };
    }
  }
  throw new Error(`Cannot find type '${name}': GGUF types are in capitals`);
}

function keysOf(layers: number, width: WidthName): GgufValues {
  const { embed, ffn, experts, choices, heads } = WIDTHS[width];
  const counts = {
    block_count: layers,
    context_length: 4096,
    embedding_length: embed,
    feed_forward_length: ffn,
    expert_count: experts,
    expert_used_count: choices,
    "attention.head_count": heads,
    "attention.head_count_kv": heads,
  };
  return {
    "general.architecture": { text: "olmoe" },
    ...Object.fromEntries(
      Object.entries(counts).map(([key, u32]) => [`olmoe.${key}`, { u32 }]),
    ),
    "olmoe.attention.layer_norm_rms_epsilon": { f32: 1e-5 },
    "olmoe.rope.freq_base": { f32: 10000 },
    ...vocabularyKeys(VOCABULARY),
  };
}

/** Returns the path of a file in the system's temporary folder, which is written at the first call. */
export async function quantizedFile(
  options: Parameters<typeof writeQuantized>[1],
): Promise<string> {
  const { type, layers, width } = options;
  const folder = join(tmpdir(), "switchyard-quantized");
  mkdirSync(folder, { recursive: true });
  const file = join(folder, `${type}-${width}-${layers}.gguf`);
  if (!existsSync(file)) await writeQuantized(file, options);
  return file;
}

/** Writes the file: one at `path` is always complete. */
export async function writeQuantized(
  path: string,
  { type, layers, width }: {
    readonly type: string;
    readonly layers: number;
    readonly width: WidthName;
  },
): Promise<void> {
  const { embed, ffn, experts } = WIDTHS[width];
  const row = typeOf(type);
  const pool = blocksOf(row, POOL, 1);
  const tensors: { [name: string]: GgufTensor<GgufData> } = {};
  let count = 0;
  const put = (name: string, ...shape: number[]) => {
    const elements = shape.reduce((n, size) => n * size, 1);
    const bytes = elements / row.elements * row.bytes;
    const from = (count++ * 7919 % POOL) * row.bytes;
    const blocks = new Uint8Array(bytes);
    for (let at = 0, start = from; at < bytes; start = 0) {
      const part = pool.subarray(
        start,
        Math.min(pool.length, start + bytes - at),
      );
      blocks.set(part, at);
      at += part.length;
    }
    tensors[`${name}.weight`] = { shape, data: { type: row.number, blocks } };
  };
  const float = (name: string, ...shape: number[]) => {
    const length = shape.reduce((n, size) => n * size, 1);
    const data = Float32Array.from(
      { length },
      (_, i) =>
        shape.length === 1 ? 1 : ((i * 7919 + count) % 251 - 125) / 2000,
    );
    tensors[`${name}.weight`] = { shape, data };
  };
  put("token_embd", VOCABULARY, embed);
  for (let i = 0; i < layers; i++) {
    for (const name of ["q", "k", "v", "output"]) {
      put(`blk.${i}.attn_${name}`, embed, embed);
    }
    put(`blk.${i}.ffn_gate_exps`, experts, ffn, embed);
    put(`blk.${i}.ffn_up_exps`, experts, ffn, embed);
    put(`blk.${i}.ffn_down_exps`, experts, embed, ffn);
    float(`blk.${i}.ffn_gate_inp`, experts, embed);
    for (const n of ["attn_norm", "ffn_norm", "attn_q_norm", "attn_k_norm"]) {
      float(`blk.${i}.${n}`, embed);
    }
  }
  float("output_norm", embed);
  put("output", VOCABULARY, embed);
  await nodeFiles().write(path, writeGguf(keysOf(layers, width), tensors));
}
