/** What the published decoder families share, in the model language. A family says how it makes queries, keys and values. */

import {
  add,
  attention,
  combine,
  dispatch,
  dot,
  embedding,
  map,
  merge,
  type Model,
  model,
  rmsNorm,
  rope,
  route,
  type RoutingPreset,
  type Scope,
  split,
  type Tensor,
  upTo,
} from "../compiler/mod.ts";
import type { Bounds } from "./config.ts";

/** Sizes and constants of a decoder. */
export interface Decoder {
  readonly layers: number;
  readonly vocabulary: number;
  readonly embed: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly experts: number;
  readonly expertsPerToken: number;
  readonly ffn: number;
  readonly epsilon: number;
  readonly theta: number;
  /** Positions that the checkpoint was made for. */
  readonly maxPositions: number;
  /** Tokens see this many positions; undefined: all. */
  readonly window: number | undefined;
  readonly preset: RoutingPreset;
  /** The embedding table is also the output matrix. */
  readonly tied: boolean;
}

/** Axes of a decoder. `query` and `keyValue` are all heads of a projection together. */
export type DecoderAxis =
  | "token"
  | "sequence"
  | "context"
  | "vocab"
  | "embed"
  | "head"
  | "kvHead"
  | "headDim"
  | "query"
  | "keyValue"
  | "expert"
  | "ffn";

/** Rows of a layer. */
export type Rows = Tensor<"token embed", "f32">;

/** The projections of a layer, before heads are split and queries and keys turned. */
export interface Projections {
  readonly q: Tensor<"token query", "f32">;
  readonly k: Tensor<"token keyValue", "f32">;
  readonly v: Tensor<"token keyValue", "f32">;
}

/** Names of the tensors of an expert layer, behind `model.layers.N.`. */
export interface ExpertNames {
  readonly router: string;
  readonly gate: string;
  readonly up: string;
  readonly down: string;
}

/** What differs between families. */
export interface Family {
  readonly experts: ExpertNames;
  /** Queries, keys and values of the normed rows; `layer` is the prefix of names, `model.layers.N`. */
  readonly project: (
    m: Scope<DecoderAxis>,
    rows: Rows,
    layer: string,
  ) => Projections;
}

interface Tokens {
  readonly sequence: Tensor<"token", "i32">;
  readonly position: Tensor<"token", "i32">;
}

type Named = { [name: string]: Tensor };

/** A decoder with a key-value cache. Outputs `logits`, and for each layer the router's logits and choices. */
export function decoderModel(
  decoder: Decoder,
  family: Family,
  bounds: Bounds,
): Model {
  const { embed, experts, ffn, headDim, heads, kvHeads } = decoder;
  return model({
    token: upTo(bounds.maxTokens),
    sequence: bounds.maxSequences,
    context: bounds.maxContext,
    vocab: decoder.vocabulary,
    embed,
    head: heads,
    kvHead: kvHeads,
    headDim,
    query: heads * headDim,
    keyValue: kvHeads * headDim,
    expert: experts,
    ffn,
  }, (m) => {
    const ids = m.input("ids", "token", { dtype: "i32" });
    const sequence = m.input("sequence", "token", { dtype: "i32" });
    const position = m.input("position", "token", { dtype: "i32" });
    const table = m.param("model.embed_tokens.weight", "vocab embed");
    const states: Named = {};
    const routings: Named = {};
    let x: Rows = embedding(table, ids, "vocab");
    for (let i = 0; i < decoder.layers; i++) {
      const layer = `model.layers.${i}`;
      x = add(
        x,
        attend(m, norm(m, x, `${layer}.input_layernorm.weight`), {
          ...{ decoder, family, layer, states },
          tokens: { sequence, position },
        }),
      );
      const rows = norm(m, x, `${layer}.post_attention_layernorm.weight`);
      const made = expertLayer(m, rows, { decoder, family, layer });
      x = add(x, made.y);
      routings[`layer${i}.router_logits`] = made.logits;
      routings[`layer${i}.topk_idx`] = made.index;
    }
    const output = decoder.tied
      ? table
      : m.param("lm_head.weight", "vocab embed");
    const logits = dot(norm(m, x, "model.norm.weight"), output, "embed");
    return { logits, ...routings, ...states };
  });

  function norm(m: Scope<DecoderAxis>, x: Rows, name: string): Rows {
    return rmsNorm(x, m.param(name, "embed"), "embed", {
      epsilon: decoder.epsilon,
    });
  }
}

/** A matrix as the files have it: outputs, then inputs. */
export function linear(
  m: Scope<DecoderAxis>,
  rows: Rows,
  name: string,
): Tensor<"token query", "f32"> {
  return dot(rows, m.param(name, "query embed"), "embed");
}

/** As `linear`, to keys or values. */
export function linearKeyValue(
  m: Scope<DecoderAxis>,
  rows: Rows,
  name: string,
): Tensor<"token keyValue", "f32"> {
  return dot(rows, m.param(name, "keyValue embed"), "embed");
}

interface Layer {
  readonly decoder: Decoder;
  readonly family: Family;
  /** Prefix of the names of its tensors. */
  readonly layer: string;
}

function attend(
  m: Scope<DecoderAxis>,
  rows: Rows,
  part: Layer & { readonly tokens: Tokens; readonly states: Named },
): Rows {
  const { decoder, layer, states } = part;
  const { sequence, position } = part.tokens;
  const { q, k, v } = part.family.project(m, rows, layer);
  const turn = { position, theta: decoder.theta };
  const cache = "sequence context kvHead headDim";
  const { y, keys, values } = attention(
    rope(split(q, "query", "head headDim"), "headDim", turn),
    {
      key: rope(split(k, "keyValue", "kvHead headDim"), "headDim", turn),
      value: split(v, "keyValue", "kvHead headDim"),
      keys: m.state(`${layer}.keys`, cache),
      values: m.state(`${layer}.values`, cache),
      sequence,
      position,
      ...decoder.window === undefined ? {} : { window: decoder.window },
    },
  );
  states[`${layer}.keys`] = keys;
  states[`${layer}.values`] = values;
  const output = m.param(`${layer}.self_attn.o_proj.weight`, "embed query");
  return dot(merge(y, "head headDim", "query"), output, "query");
}

interface Experts {
  readonly y: Rows;
  readonly logits: Tensor<"token expert", "f32">;
  readonly index: Tensor<"token choice", "i32">;
}

function expertLayer(
  m: Scope<DecoderAxis>,
  rows: Rows,
  { decoder, family, layer }: Layer,
): Experts {
  const { router, gate, up, down } = family.experts;
  const logits = dot(
    rows,
    m.param(`${layer}.${router}`, "expert embed"),
    "embed",
  );
  const routing = route(logits, {
    over: "expert",
    topK: decoder.expertsPerToken,
    preset: decoder.preset,
  });
  const sent = dispatch(rows, routing);
  const hidden = map(
    (g, u) => (g / (1 + Math.exp(-g))) * u,
    dot(sent, m.param(`${layer}.${gate}`, "expert ffn embed"), "embed"),
    dot(sent, m.param(`${layer}.${up}`, "expert ffn embed"), "embed"),
  );
  const done = dot(
    hidden,
    m.param(`${layer}.${down}`, "expert embed ffn"),
    "ffn",
  );
  return { y: combine(done, routing), logits, index: routing.index };
}
