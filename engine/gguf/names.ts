/** Names of tensors: those of llama.cpp and those of checkpoints. */

import type { GgufArchitecture, TensorName } from "./architectures.ts";

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

/** Tensors outside of layers. */
const OUTER: { readonly [name: string]: string } = {
  "token_embd.weight": "model.embed_tokens.weight",
  "output_norm.weight": "model.norm.weight",
  "output.weight": "lm_head.weight",
};

/**
 * The checkpoint name of a tensor of llama.cpp, with the number of the layer. Undefined for a tensor that no model has.
 */
export function checkpointName(
  row: GgufArchitecture,
  name: string,
): TensorName | undefined {
  const outer = { ...OUTER, ...row.outer }[name];
  if (outer !== undefined) return { name: outer };
  const [, layer, of = "", ending] =
    /^blk\.(\d+)\.(.+)\.(weight|bias)$/.exec(name) ?? [];
  const names: GgufArchitecture["tensors"] = { ...ATTENTION, ...row.tensors };
  const found = Object.hasOwn(names, of) ? names[of] : undefined;
  if (found === undefined) return undefined;
  const entry: TensorName = typeof found === "string" ? { name: found } : found;
  if (entry.bare !== undefined && entry.bare !== ending) return undefined;
  const end = entry.bare ? "" : `.${ending}`;
  return { ...entry, name: `model.layers.${layer}.${entry.name}${end}` };
}

/** A tensor of a checkpoint in a file. */
export interface GgufName extends TensorName {
  /** Name with the number of the layer. */
  readonly gguf: string;
  /** The number of the expert in a stacked tensor. */
  readonly expert: number | undefined;
}

/** Returns the GGUF name and part of a checkpoint tensor. Undefined if llama.cpp has no name for it. */
export function ggufName(
  row: GgufArchitecture,
  name: string,
): GgufName | undefined {
  const outer = Object.entries({ ...row.outer, ...OUTER })
    .find(([, ours]) => ours === name)?.[0];
  if (outer !== undefined) return { gguf: outer, name, expert: undefined };
  const [, layer, rest = ""] = /^model\.layers\.(\d+)\.(.+)$/.exec(name) ?? [];
  // Names of the architecture precede those of all.
  const names: GgufArchitecture["tensors"] = {
    ...row.tensors,
    ...Object.fromEntries(
      Object.entries(ATTENTION).filter(([name]) => !(name in row.tensors)),
    ),
  };
  for (const [gguf, found] of Object.entries(names)) {
    const entry: TensorName = typeof found === "string"
      ? { name: found }
      : found;
    const [, of = "", ending] = entry.bare
      ? [rest, rest, entry.bare]
      : /^(.+)\.(weight|bias)$/.exec(rest) ?? [];
    const [start = "", end] = entry.name.split("{expert}");
    const [, expert] = end === undefined
      ? []
      : /^(\d+)$/.exec(of.slice(start.length, of.length - end.length)) ?? [];
    const same = end === undefined
      ? of === start
      : expert !== undefined && of === `${start}${expert}${end}`;
    if (!same) continue;
    return {
      ...entry,
      gguf: `blk.${layer}.${gguf}.${ending}`,
      expert: expert === undefined ? undefined : Number(expert),
    };
  }
  return undefined;
}
