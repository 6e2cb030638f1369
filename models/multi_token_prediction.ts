/**
 * Multi-token prediction (DeepSeek-V3, arXiv 2412.19437, 2.2): a further layer predicts the token after the next one
 * from the hidden state of a token and the embedding of the next token. Embeddings and the output matrix are those of
 * the model.
 */

import { concat, dot } from "../compiler/mod.ts";
import type { Decoder, DecoderScope, LayerKind, Rows } from "./decoder.ts";
import { HIDDEN } from "./outputs.ts";

/** The layer of a family that predicts a further token. */
export interface Predictor {
  readonly kind: LayerKind;
  /** Its block. */
  readonly layer: string;
  /** Gains of the norms of embeddings and of hidden states. */
  readonly tokenNorm: string;
  readonly hiddenNorm: string;
  /** The matrix from both of these, embeddings first, to the rows of the layer. */
  readonly join: string;
  /** Gain of the norm before the output matrix. */
  readonly norm: string;
}

/** Why checkpoints of a family have no such layer. */
export interface NoPredictor {
  readonly missing: string;
}

/** Axes of the input of such a layer: an embedding and a hidden state. */
export type PredictorAxis = "pair";

/** A further layer with the next number: DeepSeek-V3 and GLM. */
export function nextLayer(
  { layers, kindOf }: Decoder,
  start = "model.layers",
): Predictor {
  const layer = `${start}.${layers}`;
  return {
    kind: kindOf(layers),
    layer,
    tokenNorm: `${layer}.enorm.weight`,
    hiddenNorm: `${layer}.hnorm.weight`,
    join: `${layer}.eh_proj.weight`,
    norm: `${layer}.shared_head.norm.weight`,
  };
}

/** A module of its own: Qwen3-Next. */
export function predictorModule(kind: LayerKind): Predictor {
  return {
    kind,
    layer: "mtp.layers.0",
    tokenNorm: "mtp.pre_fc_norm_embedding.weight",
    hiddenNorm: "mtp.pre_fc_norm_hidden.weight",
    join: "mtp.fc.weight",
    norm: "mtp.norm.weight",
  };
}

/**
 * The rows of the layer: join · [norm(embedding), norm(hidden)]. The input `hidden` is the hidden state of the token
 * before each one: the rows before the output matrix, of the model or of this layer.
 */
export function multiTokenPrediction(
  m: DecoderScope<PredictorAxis>,
  embeddings: Rows,
  { predictor, norm }: {
    readonly predictor: Predictor;
    readonly norm: (m: DecoderScope, x: Rows, gain: string) => Rows;
  },
): Rows {
  const hidden = m.input(HIDDEN, "token embed");
  const both = concat(
    norm(m, embeddings, predictor.tokenNorm),
    norm(m, hidden, predictor.hiddenNorm),
    "embed",
    "pair",
  );
  return dot(both, m.param(predictor.join, "embed pair"), "pair");
}
