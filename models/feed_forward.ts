/** Feed-forward blocks: gated, dense or of experts whose matrices are tensors of their own. */

import {
  combine,
  dispatch,
  dot,
  map,
  route,
  type RouteOptions,
  type Routing,
  type RoutingPreset,
  type Tensor,
} from "../compiler/mod.ts";
import {
  choicesName,
  type DecoderScope,
  type Layer,
  type Rows,
} from "./decoder.ts";

/** A routing of a decoder's tokens. */
export type TokenRouting = Routing<"token", "expert", "slot", "choice">;

/** up · silu(gate) */
export function swiglu<T extends Tensor<string, "f32">>(gate: T, up: T): T {
  const [a, b]: Tensor<string, "f32">[] = [gate, up];
  return map((g, u) => (g / (1 + Math.exp(-g))) * u, a!, b!) as T;
}

/** `gate_proj`, `up_proj` and `down_proj` of a block that every token goes through; `axis` is its width. */
export function mlp(
  m: DecoderScope,
  rows: Rows,
  name: string,
  axis: "denseFfn" | "sharedFfn",
): Rows {
  const inward = `${axis} embed` as "denseFfn embed";
  const hidden = swiglu(
    dot(rows, m.param(`${name}.gate_proj.weight`, inward), "embed"),
    dot(rows, m.param(`${name}.up_proj.weight`, inward), "embed"),
  );
  const outward = `embed ${axis}` as "embed denseFfn";
  return dot(
    hidden,
    m.param(`${name}.down_proj.weight`, outward),
    axis as "denseFfn",
  );
}

/** How a router routes, but over what. */
export type RouterOptions = Omit<
  RouteOptions<"token expert", "expert", RoutingPreset, "slot", "choice">,
  "over"
>;

/** Logits of the router whose matrix has this name. */
export function routerLogits(
  m: DecoderScope,
  rows: Rows,
  name: string,
): Tensor<"token expert", "f32"> {
  return dot(rows, m.param(name, "expert embed"), "embed");
}

/** Route the tokens of a layer, or replay what is given. The model returns the logits and the choices. */
export function routeLayer(
  logits: Tensor<"token expert", "f32">,
  layer: Layer,
  options: RouterOptions,
): TokenRouting {
  const routing: TokenRouting = route(logits, {
    ...{ over: "expert", ...options },
    ...layer.choices ? { choices: layer.choices() } : {},
  });
  layer.keep(`layer${layer.index}.router_logits`, logits);
  layer.keep(choicesName(layer.index), routing.index);
  layer.routed.push({ logits, routing });
  return routing;
}

/** Experts with matrices `gate`, `up` and `down` of their own; `{expert}` in the names is their number. */
export function experts(
  m: DecoderScope,
  rows: Rows,
  routing: TokenRouting,
  names: { readonly gate: string; readonly up: string; readonly down: string },
): Rows {
  const sent = dispatch(rows, routing);
  const hidden = swiglu(
    dot(sent, m.param(names.gate, "expert ffn embed"), "embed"),
    dot(sent, m.param(names.up, "expert ffn embed"), "embed"),
  );
  const done = dot(hidden, m.param(names.down, "expert embed ffn"), "ffn");
  return combine(done, routing);
}

/** The names that most families give those matrices. */
export function expertNames(
  block: string,
): { gate: string; up: string; down: string } {
  const at = `${block}.experts.{expert}`;
  return {
    gate: `${at}.gate_proj.weight`,
    up: `${at}.up_proj.weight`,
    down: `${at}.down_proj.weight`,
  };
}
