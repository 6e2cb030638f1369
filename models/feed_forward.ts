/** Feed-forward blocks: gated, dense or of experts whose matrices are tensors of their own. */

import {
  add,
  combine,
  dispatch,
  dot,
  route,
  type RouteOptions,
  type Routing,
  type RoutingPreset,
  swiglu,
} from "../compiler/mod.ts";
import type { DecoderScope, Layer, Rows } from "./decoder.ts";

/** A routing of a decoder's tokens. */
export type TokenRouting = Routing<"token", "expert", "slot", "choice">;

/** `gate_proj`, `up_proj` and `down_proj` of a block that every token goes through. */
export function mlp(
  m: DecoderScope,
  rows: Rows,
  { name, ffn }: { readonly name: string; readonly ffn: number },
): Rows {
  return m.block(name, { ffn }, (m) => {
    const gate = m.param("gate_proj.weight", "ffn embed");
    const up = m.param("up_proj.weight", "ffn embed");
    const hidden = swiglu(
      dot(rows, gate, "embed"),
      dot(rows, up, "embed"),
    );
    return dot(hidden, m.param("down_proj.weight", "embed ffn"), "ffn");
  });
}

/** `feed` of families where some layers have no experts: the block `mlp` has those of `sparse`, or is dense. */
export function sparseOrDense(
  { ffn, denseFfn }: { readonly ffn: number; readonly denseFfn: number },
  sparse: (m: DecoderScope<"ffn">, rows: Rows, layer: Layer) => Rows,
): (m: DecoderScope, rows: Rows, layer: Layer) => Rows {
  return (m, rows, layer) =>
    layer.kind.experts
      ? m.block("mlp", { ffn }, (m) => sparse(m, rows, layer))
      : mlp(m, rows, { name: "mlp", ffn: denseFfn });
}

/** How a router routes, but over what. */
export type RouterOptions =
  & Omit<
    RouteOptions<"token expert", "expert", RoutingPreset, "slot", "choice">,
    "over"
  >
  & {
    /** What its matrix `weight` is a part of; default "gate". */
    readonly router?: string;
    /** Its `bias` is added to logits; default false. */
    readonly biased?: boolean;
  };

/** Route the tokens of a layer, or replay what is given. The model returns the logits and the choices. */
export function routeLayer(
  m: DecoderScope,
  rows: Rows,
  layer: Layer,
  { router = "gate", biased = false, ...options }: RouterOptions,
): TokenRouting {
  const products = dot(
    rows,
    m.param(`${router}.weight`, "expert embed"),
    "embed",
  );
  const logits = biased
    ? add(products, m.param(`${router}.bias`, "expert"))
    : products;
  const routing: TokenRouting = route(logits, {
    over: "expert",
    ...options,
    ...layer.choices ? { choices: layer.choices() } : {},
  });
  layer.routed({ logits, routing });
  return routing;
}

/** The names of the matrices of experts; `{expert}` in them is the number of the expert. */
export interface ExpertNames {
  readonly gate: string;
  readonly up: string;
  readonly down: string;
}

/** The names that most families give those matrices. */
const NAMES: ExpertNames = {
  gate: "experts.{expert}.gate_proj.weight",
  up: "experts.{expert}.up_proj.weight",
  down: "experts.{expert}.down_proj.weight",
};

/** Those of Mixtral and of families after it. */
export const NUMBERED: ExpertNames = {
  gate: "experts.{expert}.w1.weight",
  up: "experts.{expert}.w3.weight",
  down: "experts.{expert}.w2.weight",
};

/** Experts with matrices of their own. */
export function experts(
  m: DecoderScope<"ffn">,
  rows: Rows,
  routing: TokenRouting,
  names = NAMES,
): Rows {
  const sent = dispatch(rows, routing);
  const hidden = swiglu(
    dot(sent, m.param(names.gate, "expert ffn embed"), "embed"),
    dot(sent, m.param(names.up, "expert ffn embed"), "embed"),
  );
  const done = dot(hidden, m.param(names.down, "expert embed ffn"), "ffn");
  return combine(done, routing);
}
