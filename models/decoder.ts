/**
 * The shared parts of the published decoder families, in the model language. A family defines the attention and the
 * feed-forward block of a layer.
 */

import {
  add,
  type AxisSizes,
  DataError,
  div,
  dot,
  embedding,
  layerNorm,
  logSumExp,
  type Model,
  model,
  mul,
  recompute,
  rmsNorm,
  type Scope,
  tanh,
  type Tensor,
  topK,
  type UpTo,
  upTo,
} from "../compiler/mod.ts";
import type { DecoderOptions } from "./config.ts";
import { decoderLosses, type Routed } from "./losses.ts";
import {
  multiTokenPrediction,
  type NoPredictor,
  type Predictor,
  type PredictorAxis,
} from "./multi_token_prediction.ts";
import { HIDDEN, NORMALIZER } from "./outputs.ts";

/** Sizes and constants of any decoder. */
export interface Decoder {
  readonly layers: number;
  readonly vocabulary: number;
  readonly embed: number;
  readonly heads: number;
  /** Elements of a head that rotary positions rotate. */
  readonly headDim: number;
  readonly experts: number;
  readonly expertsPerToken: number;
  readonly epsilon: number;
  /** Maximum positions of the checkpoint. */
  readonly maxPositions: number;
  /** The embedding table is also the output matrix. */
  readonly tied: boolean;
  /** The properties that distinguish a layer from other layers of the model. */
  readonly kindOf: (layer: number) => LayerKind;
}

/** All properties that can differ between layers of a decoder. Layers of one kind are equal. */
export interface LayerKind {
  readonly experts: boolean;
  /** Positions that a token sees. Undefined: all positions. */
  readonly window?: number | undefined;
  /** Queries and keys are rotated by their positions, if layers differ in that. */
  readonly rotated?: boolean;
  /** The block that mixes tokens, if layers differ in that. */
  readonly mixer?: string;
  /** Blocks of layers whose starts a layer reads, if there are attention residuals. */
  readonly starts?: number;
  /** Limits of the activations of experts and of the dense block, if layers differ in that. 0: none. */
  readonly limits?: readonly [experts: number, dense: number];
}

/** Axes of a decoder. */
export type DecoderAxis =
  | "token"
  | "row"
  | "candidate"
  | "sequence"
  | "context"
  | "vocab"
  | "embed"
  | "head"
  | "expert"
  | "choice";

/** Sizes of the axes. Those of selected rows and candidates are optional. */
type DecoderSizes =
  & {
    readonly [axis in Exclude<DecoderAxis, "row" | "candidate">]: number | UpTo;
  }
  & { readonly row?: UpTo; readonly candidate?: number };

/** The scope that declares a decoder's tensors. `Own` are the axes of a family or of a block. */
export type DecoderScope<Own extends string = never> = Scope<DecoderAxis | Own>;

/** Rows of a layer. */
export type Rows = Tensor<"token embed", "f32">;

/** The context of a layer while it is built. */
export interface Layer {
  readonly index: number;
  readonly kind: LayerKind;
  /** Its block, `model.layers.N`. */
  readonly name: string;
  /** The sequence of each token. */
  readonly sequence: Tensor<"token", "i32">;
  /** The position of each token in its sequence. */
  readonly position: Tensor<"token", "i32">;
  /** Adds a tensor to the model's results: the next value of a state, or the output of a router. */
  readonly keep: (name: string, tensor: Tensor) => void;
  /** The given experts of each token, if they are not chosen. */
  readonly choices: (() => Tensor<"token choice", "i32">) | undefined;
  /** Receives the result of the layer's router. */
  readonly routed: (routed: Routed) => void;
  /** Normalizes rows with a gain of the layer. */
  readonly norm: (m: DecoderScope, x: Rows, gain: string) => Rows;
  /** Returns rows plus the result of `part`. */
  readonly residual: (x: Rows, part: (x: Rows) => Rows) => Rows;
  /** Called after the last attention of a layer: selects the rows that need logits. */
  readonly pick: <X extends Tensor>(m: DecoderScope, x: X) => X;
}

/** Returns the name of a router's choices. An input of given choices has the same name. */
function choicesName(layer: number): string {
  return `layer${layer}.topk_idx`;
}

/** A part of a layer: takes the scope of the layer and rows. */
export type Part<Own extends string = never> = (
  m: DecoderScope<Own>,
  rows: Rows,
  layer: Layer,
) => Rows;

/** The blocks of a layer. Both take normalized rows and the scope of the layer. `decoderModel` adds the residual. */
export interface PreNorm<Own extends string> {
  readonly attend: Part<Own>;
  readonly feed: Part;
}

/** The inputs of the layers. */
export interface Start {
  /** The ids of tokens, and their embeddings. */
  readonly ids: Tensor<"token", "i32">;
  readonly rows: Rows;
}

/** A complete layer, and the code around all layers. */
export interface Layers<Own extends string> {
  readonly layer: Part<Own>;
  /** Input rows of the first layer. Default: the embeddings. */
  readonly rows?: Rows;
  /** Converts the result of the last layer to the input of the last norm. */
  readonly end?: (rows: Rows) => Rows;
}

/**
 * The layers of a decoder: two blocks, a complete layer including residuals, or a complete layer after shared
 * computation.
 */
export type DecoderBlocks<Axes extends AxisSizes> =
  & DecoderParts<Axes>
  & (PreNorm<keyof Axes & string> | {
    readonly layer: Part<keyof Axes & string>;
  } | {
    readonly begin: (
      m: DecoderScope<keyof Axes & string>,
      start: Start,
    ) => Layers<keyof Axes & string>;
  });

interface DecoderParts<Axes extends AxisSizes> {
  /** Axes of attention, which all layers share. */
  readonly axes: Axes;
  /** Factors of embeddings, of each block's result, and of logits. Default: 1. */
  readonly multipliers?: {
    readonly embedding: number;
    readonly residual: number;
    readonly logits: number;
  };
  /** Logits are smoothly limited to ± this value. */
  readonly softCap?: number;
  /** Gains of norms are stored minus 1. */
  readonly centred?: boolean;
  /** Norms subtract the mean. Default: false. */
  readonly subtractMean?: boolean;
  /** Tensor names that differ from those of Llama. */
  readonly names?: Partial<DecoderNames>;
  /** A further layer that predicts the token after the next one, or the reason why there is none. */
  readonly predictor?: Predictor | NoPredictor;
}

/** Names of the tensors outside of attention and feed-forward blocks. */
export interface DecoderNames {
  readonly embedding: string;
  /** The block of a layer, without its number. */
  readonly layer: string;
  /** Gains of the norms of a layer, inside its block. */
  readonly attentionNorm: string;
  readonly feedNorm: string;
  /** Gain of the last norm, and the output matrix. */
  readonly norm: string;
  readonly output: string;
}

/** The names in Llama and most families. */
const NAMES: DecoderNames = {
  embedding: "model.embed_tokens.weight",
  layer: "model.layers",
  attentionNorm: "input_layernorm.weight",
  feedNorm: "post_attention_layernorm.weight",
  norm: "model.norm.weight",
  output: "lm_head.weight",
};

/** Names of the text model in a model of text and images. */
export const WRAPPED: Partial<DecoderNames> = {
  embedding: "model.language_model.embed_tokens.weight",
  layer: "model.language_model.layers",
  norm: "model.language_model.norm.weight",
};

/** Names of a text model that is a whole causal model in a model of text and images. */
export const WRAPPED_CAUSAL = {
  embedding: "language_model.model.embed_tokens.weight",
  layer: "language_model.model.layers",
  norm: "language_model.model.norm.weight",
  output: "language_model.lm_head.weight",
} as const satisfies Partial<DecoderNames>;

/** A decoder with a cache. Outputs `logits`, and the tensors that its layers keep. */
export function decoderModel<Axes extends AxisSizes>(
  decoder: Decoder,
  blocks: DecoderBlocks<Axes>,
  options: DecoderOptions,
): Model {
  const { next } = options;
  const predictor = next?.predicts ? predictorOf(blocks) : undefined;
  const given = { ...NAMES, ...blocks.names };
  const names = predictor ? { ...given, norm: predictor.norm } : given;
  const norm = normOf(decoder, blocks);
  // Hidden states of all tokens are an output.
  const ofAll = next?.hidden && !predictor;
  const by = blocks.multipliers ?? { embedding: 1, residual: 1, logits: 1 };
  const sizes = {
    ...sizesOf(decoder, options),
    ...predictor ? { pair: 2 * decoder.embed } : {},
    ...blocks.axes,
  };
  return model(sizes, (scope) => {
    const m: DecoderScope = scope;
    const ids = m.input("ids", "token", { dtype: "i32" });
    const sequence = m.input("sequence", "token", { dtype: "i32" });
    const position = m.input("position", "token", { dtype: "i32" });
    const table = m.param(names.embedding, "vocab embed");
    const kept: { [name: string]: Tensor } = {};
    const keep = (name: string, tensor: Tensor) => void (kept[name] = tensor);
    const routers: Routed[] = [];
    const embedded = times(embedding(table, ids, "vocab"), by.embedding);
    const layers: Layers<keyof Axes & string> = "layer" in blocks
      ? blocks
      : "begin" in blocks
      ? blocks.begin(scope, { ids, rows: embedded })
      : { layer: preNorm(blocks, names) };
    let x = layers.rows ?? embedded;
    if (predictor) {
      x = multiTokenPrediction(
        scope as Scope as DecoderScope<PredictorAxis>,
        x,
        { predictor, norm },
      );
    }
    const built = predictor ? [decoder.layers] : options.layers ??
      Array.from({ length: decoder.layers }, (_, index) => index);
    for (const index of built) {
      const name = predictor?.layer ?? `${names.layer}.${index}`;
      const layer: Layer = {
        index,
        kind: predictor?.kind ?? decoder.kindOf(index),
        name,
        sequence,
        position,
        keep,
        choices: options.replay
          ? () => m.input(choicesName(index), "token choice", { dtype: "i32" })
          : undefined,
        routed: ({ logits, routing }) => {
          keep(`layer${index}.router_logits`, logits);
          keep(choicesName(index), routing.index);
          if (!next && !options.training) {
            keep(`layer${index}.topk_weight`, routing.weight);
          }
          routers.push({ logits, routing });
        },
        norm,
        residual: (x, part) => {
          const added = (x: Rows) => times(part(x), by.residual);
          return add(
            x,
            options.training?.recompute ? recompute(x, added) : added(x),
          );
        },
        // After the last attention, no token depends on another token's row.
        pick: next && !ofAll && index === built.at(-1) ? pickRows : same,
      };
      x = scope.block(name, {}, (scope) => layers.layer(scope, x, layer));
    }
    const output = decoder.tied ? table : m.param(names.output, "vocab embed");
    const hidden = norm(m, layers.end?.(x) ?? x, names.norm);
    if (next?.hidden) keep(HIDDEN, hidden);
    const products = times(
      dot(ofAll ? pickRows(m, hidden) : hidden, output, "embed"),
      by.logits,
    );
    const logits = softCapped(products, blocks.softCap);
    if (next?.normalizer) keep(NORMALIZER, logSumExp(logits, "vocab"));
    const candidates = candidateCount(decoder, options);
    const results = candidates === undefined
      ? { logits }
      : best(logits, candidates, next);
    const losses = options.training
      ? decoderLosses(m, logits, routers, options.training)
      : {};
    // Caches are last, so that launches that write them can join others.
    return { ...results, ...losses, ...kept };
  });
}

/** Returns the sizes of the axes of any decoder. */
function sizesOf(
  decoder: Decoder,
  options: DecoderOptions,
): DecoderSizes {
  const { next, maxTokens, maxSequences, maxContext } = options;
  const selected = maxSequences * (next?.perSequence ?? 1);
  const candidates = candidateCount(decoder, options);
  return {
    token: upTo(maxTokens),
    sequence: maxSequences,
    context: maxContext,
    vocab: decoder.vocabulary,
    embed: decoder.embed,
    head: decoder.heads,
    expert: decoder.experts,
    choice: decoder.expertsPerToken,
    ...next ? { row: upTo(Math.min(maxTokens, selected)) } : {},
    ...candidates === undefined ? {} : { candidate: candidates },
  };
}

/** Returns the number of likeliest tokens that are results, or undefined if the logits of all tokens are. */
function candidateCount(
  { vocabulary }: Decoder,
  { next }: DecoderOptions,
): number | undefined {
  return next?.candidates ? Math.min(next.candidates, vocabulary) : undefined;
}

/** Returns the likeliest tokens and their logits, and on demand all logits. */
function best(
  logits: Tensor<"token vocab", "f32">,
  candidates: number,
  next: DecoderOptions["next"],
): { [name: string]: Tensor } {
  const { values, indices } = topK(logits, {
    over: "vocab",
    k: candidates,
    axis: "candidate",
  });
  return {
    ...next?.logits ? { logits } : {},
    "candidates.logits": values,
    "candidates.ids": indices,
  };
}

/** Limits logits smoothly to ± `cap`. Without a cap, returns them. */
function softCapped(
  logits: Tensor<"token vocab", "f32">,
  cap: number | undefined,
): Tensor<"token vocab", "f32"> {
  return cap === undefined ? logits : mul(tanh(div(logits, cap)), cap);
}

/** Returns the norm of a decoder: of rows, with the gain of a name in a scope. */
function normOf(
  { epsilon }: Decoder,
  { subtractMean, centred }: Pick<
    DecoderParts<AxisSizes>,
    "subtractMean" | "centred"
  >,
): Layer["norm"] {
  return (m, x, name) => {
    const gain = m.param(name, "embed");
    return subtractMean
      ? layerNorm(x, gain, "embed", { epsilon })
      : rmsNorm(x, centred ? add(gain, 1) : gain, "embed", { epsilon });
  };
}

function predictorOf(
  { predictor = { missing: "the family declares no layer for it" } }: {
    readonly predictor?: Predictor | NoPredictor;
  },
): Predictor {
  if (!("missing" in predictor)) return predictor;
  throw new DataError(
    `Cannot draft with multi-token prediction: ${predictor.missing}. Draft by lookup or with another checkpoint`,
  );
}

function preNorm<Own extends string>(
  { attend, feed }: PreNorm<Own>,
  { attentionNorm, feedNorm }: DecoderNames,
): Part<Own> {
  return (scope, x, layer) => {
    const m: DecoderScope = scope;
    const attended = layer.residual(
      x,
      (x) => attend(scope, layer.norm(m, x, attentionNorm), layer),
    );
    return layer.residual(
      layer.pick(m, attended),
      (x) => feed(m, layer.norm(m, x, feedNorm), layer),
    );
  };
}

function same<X extends Tensor>(_: DecoderScope, x: X): X {
  return x;
}

/**
 * Selects the rows that the input `rows` numbers. Their types are those of all tokens, but they have an axis of their
 * own.
 */
function pickRows<X extends Tensor>(m: DecoderScope, x: X): X {
  const rows = m.input("rows", "row", { dtype: "i32" });
  return embedding(x as Tensor as Rows, rows, "token") as Tensor as X;
}

/** Returns `x` times a constant of the configuration. A factor of 1 computes nothing. */
export function times<A extends string>(
  x: Tensor<A, "f32">,
  factor: number,
): Tensor<A, "f32"> {
  return factor === 1 ? x : mul<A, "f32">(x, factor);
}
