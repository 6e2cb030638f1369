/**
 * The indexer of DeepSeek sparse attention (DeepSeek-V3.2, arXiv 2512.02556, equation 1): a small attention without
 * values. The attention of the layer sees only the keys with its best scores.
 */

import {
  dot,
  layerNorm,
  mul,
  rope,
  selectKeys,
  split,
  type Tensor,
} from "../compiler/mod.ts";
import { type Config, integerField } from "./config.ts";
import type { DecoderScope, Layer, Rows } from "./decoder.ts";
import type { Rotary } from "./rotary.ts";

/** Epsilon of the key norm, independent of the configuration. */
const EPSILON = 1e-6;

/** Sizes of an indexer, and the rotation of the first elements of its heads. */
export interface Indexer {
  readonly indexHeads: number;
  readonly indexDim: number;
  /** Number of keys that a token attends to. */
  readonly indexKeys: number;
  readonly indexRotary: Rotary;
}

/** Reads the fields of an indexer. */
export function indexerFields(
  config: Config,
  { heads, rotary }: { readonly heads: number; readonly rotary: Rotary },
): Indexer {
  return {
    indexHeads: integerField(config, "index_n_heads", { default: heads }),
    indexDim: integerField(config, "index_head_dim", { default: 128 }),
    indexKeys: integerField(config, "index_topk", { default: 2048 }),
    indexRotary: rotary,
  };
}

/** The positions that each token attends to. */
export type Selected = Tensor<"token selected", "i32">;

/** Chooses keys with the block `indexer` of the current block. `short` is the input of the queries. */
export function selectByIndexer(
  m: DecoderScope<"queryLatent">,
  { rows, short, layer, block }: {
    readonly rows: Rows;
    readonly short: Tensor<"token queryLatent", "f32">;
    readonly layer: Layer;
    readonly block: string;
  },
  { indexHeads, indexDim, indexKeys, indexRotary }: Indexer,
): Selected {
  const axes = {
    indexHead: indexHeads,
    indexDim,
    indexAll: indexHeads * indexDim,
  };
  const rotation = { position: layer.position, ...indexRotary };
  return m.block("indexer", axes, (m) => {
    const up = m.param("wq_b.weight", "indexAll queryLatent");
    const queries = split(
      dot(short, up, "queryLatent"),
      "indexAll",
      "indexHead indexDim",
    );
    const key = layerNorm(
      dot(rows, m.param("wk.weight", "indexDim embed"), "embed"),
      m.param("k_norm.weight", "indexDim"),
      "indexDim",
      { bias: m.param("k_norm.bias", "indexDim"), epsilon: EPSILON },
    );
    const weights = dot(
      rows,
      m.param("weights_proj.weight", "indexHead embed"),
      "embed",
    );
    const { selected, keys } = selectKeys(
      rope(queries, "indexDim", rotation),
      {
        key: rope(key, "indexDim", rotation),
        keys: m.state("keys", "sequence context indexDim"),
        weights: mul(weights, (indexHeads * indexDim) ** -0.5),
        sequence: layer.sequence,
        position: layer.position,
        k: indexKeys,
      },
    );
    layer.keep(`${layer.name}.${block}.indexer.keys`, keys);
    return selected;
  });
}
