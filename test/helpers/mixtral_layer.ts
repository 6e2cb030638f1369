/** Layer of Mixtral: two experts per token, each with gate, up and down projections. */

import {
  add,
  combine,
  dispatch,
  dot,
  map,
  route,
  type Routing,
  type Scope,
  type Tensor,
} from "../../compiler/mod.ts";

/** Applies the layer to the input `x`, [token, embed], and adds `x`. Returns the sum and the routing. */
export function mixtralLayer(
  m: Scope<"token" | "embed" | "ffn" | "expert">,
): {
  readonly y: Tensor<"token embed", "f32">;
  readonly routing: Routing<"token", "expert">;
} {
  const x = m.input("x", "token embed");
  const logits = dot(x, m.param("router", "expert embed"), "embed");
  const routing = route(logits, {
    over: "expert",
    topK: 2,
    preset: "mixtral",
  });
  const sent = dispatch(x, routing);
  const gate = dot(
    sent,
    m.param("experts.{expert}.gate", "expert ffn embed"),
    "embed",
  );
  const up = dot(
    sent,
    m.param("experts.{expert}.up", "expert ffn embed"),
    "embed",
  );
  const hidden = map((g, u) => (g / (1 + Math.exp(-g))) * u, gate, up);
  const done = dot(
    hidden,
    m.param("experts.{expert}.down", "expert embed ffn"),
    "ffn",
  );
  return { y: add(x, combine(done, routing)), routing };
}
