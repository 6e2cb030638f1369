/**
 * Recorded Kimi checkpoints with fewer heads of Kimi Delta Attention, because files have one number for both kinds of
 * attention.
 */

import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type RawTensor, readRaw, writeRaw } from "./cli.ts";

/** Fields of a Kimi configuration that the test uses. */
export interface KimiText {
  readonly num_attention_heads: number;
  readonly linear_attn_config: {
    readonly num_heads: number;
    readonly head_dim: number;
    readonly full_attn_layers: readonly number[];
  };
  readonly [field: string]: unknown;
}

/** Matrices and vectors whose rows are those of heads. */
const ROWS =
  /\.self_attn\.([qkv]_proj|[qkv]_conv1d|[fg]_b_proj|g_proj|dt_bias|b_proj|A_log)/;

/**
 * Writes a folder with as many heads of Kimi Delta Attention as of latent attention. Returns its text configuration.
 */
export async function withEqualHeads(
  from: string,
  to: string,
): Promise<KimiText> {
  const config = JSON.parse(readFileSync(join(from, "config.json"), "utf8")) as
    & KimiText
    & { readonly text_config?: KimiText };
  const { text_config: wrapped } = config;
  const { linear_attn_config: delta, ...fields } = wrapped ?? config;
  const heads = fields["num_attention_heads"] as number;
  const text = {
    ...fields,
    linear_attn_config: { ...delta, num_heads: heads },
  } as KimiText;
  mkdirSync(to);
  writeFileSync(
    join(to, "config.json"),
    JSON.stringify(wrapped ? { ...config, text_config: text } : text),
  );
  const tensors = await readRaw(join(from, "model.safetensors"));
  const sliced = Object.entries(tensors).map(([name, tensor]) => {
    const [, layer] = /layers\.(\d+)\./.exec(name) ?? [];
    const isFull = delta.full_attn_layers.includes(Number(layer) + 1);
    return [name, isFull ? tensor : slicedHeads(name, tensor, delta, heads)];
  });
  await writeRaw(
    join(to, "model.safetensors"),
    Object.fromEntries(sliced) as { [name: string]: RawTensor },
  );
  return text;
}

/** A tensor of Kimi Delta Attention with the first heads. */
function slicedHeads(
  name: string,
  tensor: RawTensor,
  { num_heads: all }: KimiText["linear_attn_config"],
  heads: number,
): RawTensor {
  const { shape, data } = tensor;
  const kept = (of: number) => of / all * heads;
  if (name.endsWith(".self_attn.o_proj.weight")) {
    const [rows = 0, columns = 0] = shape;
    const rowBytes = data.length / rows;
    return {
      ...tensor,
      shape: [rows, kept(columns)],
      data: Buffer.concat(
        Array.from(
          { length: rows },
          (_, row) =>
            data.subarray(row * rowBytes, row * rowBytes + kept(rowBytes)),
        ),
      ),
    };
  }
  // A padded vector is not sliced.
  const axis = shape.findIndex((size) => size > 1);
  if (!ROWS.test(name) || shape[axis]! % all !== 0) return tensor;
  return {
    ...tensor,
    shape: shape.map((size, i) => i === axis ? kept(size) : size),
    data: data.subarray(0, kept(data.length)),
  };
}
