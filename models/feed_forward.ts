/** Feed-forward blocks: gated blocks, dense or with separate expert matrices. */

import {
  add,
  clamp,
  combine,
  dispatch,
  dot,
  minimum,
  mul,
  route,
  type RouteOptions,
  type Routing,
  type RoutingPreset,
  silu,
  slice,
  swiglu,
  type Tensor,
} from "../compiler/mod.ts";
import type { DecoderScope, Layer, Part, Rows } from "./decoder.ts";

/** A gated unit: `swiglu`, or another function of gates and their factors. */
export type Glu = <A extends string>(
  gate: Tensor<A, "f32">,
  up: Tensor<A, "f32">,
) => Tensor<A, "f32">;

/** `swiglu` whose activated gate is at most `limit`, and whose factor is from -limit to limit. 0: no limit. */
export function limitedGlu(limit: number): Glu {
  if (limit === 0) return swiglu;
  return <A extends string>(gate: Tensor<A, "f32">, up: Tensor<A, "f32">) =>
    mul(
      minimum(silu(gate), limit),
      clamp(up, -limit, limit),
    ) as Tensor<A, "f32">;
}

/** A routing of a decoder's tokens. */
export type TokenRouting = Routing<"token", "expert", "slot", "choice">;

/** The matrices `gate_proj`, `up_proj` and `down_proj` of a dense block. */
export function mlp(
  m: DecoderScope,
  rows: Rows,
  { name, ffn, names = ["gate_proj", "up_proj", "down_proj"], glu = swiglu }: {
    readonly name: string;
    readonly ffn: number;
    /** Names of the matrices, in this order. */
    readonly names?: readonly [gate: string, up: string, down: string];
    readonly glu?: Glu;
  },
): Rows {
  const [gate, up, down] = names;
  return m.block(name, { ffn }, (m) => {
    const inward = (name: string) =>
      dot(rows, m.param(`${name}.weight`, "ffn embed"), "embed");
    const hidden = glu(inward(gate), inward(up));
    return dot(hidden, m.param(`${down}.weight`, "embed ffn"), "ffn");
  });
}

/** The matrices `input_linear`, gates first, and `output_linear` of a dense block. */
export function fusedMlp(
  m: DecoderScope,
  rows: Rows,
  { name, ffn }: { readonly name: string; readonly ffn: number },
): Rows {
  return m.block(name, { ffn, gateUp: 2 * ffn }, (m) => {
    const inward = m.param("input_linear.weight", "gateUp embed");
    const both = dot(rows, inward, "embed");
    const hidden = swiglu(
      slice(both, "gateUp", 0, "ffn"),
      slice(both, "gateUp", ffn, "ffn"),
    );
    return dot(hidden, m.param("output_linear.weight", "embed ffn"), "ffn");
  });
}

/**
 * Returns the `feed` of families with some layers without experts: a block, `mlp` by default, contains the experts of
 * `sparse`; in other layers the block `mlp` is dense.
 */
export function sparseOrDense(
  { ffn, denseFfn }: { readonly ffn: number; readonly denseFfn: number },
  sparse: Part<"ffn" | "gateUp">,
  block = "mlp",
): Part {
  return (m, rows, layer) =>
    layer.kind.experts
      ? m.block(
        block,
        { ffn, gateUp: 2 * ffn },
        (m) => sparse(m, rows, layer),
      )
      : mlp(m, rows, { name: "mlp", ffn: denseFfn });
}

/** Options of a router except its axis. */
export type RouterOptions =
  & Omit<
    RouteOptions<"token expert", "expert", RoutingPreset, "slot", "choice">,
    "over"
  >
  & {
    /** Name of the block with its matrix `weight`. Default: "gate". */
    readonly router?: string;
    /** Its matrix is `embed expert`. Default: false. */
    readonly transposed?: boolean;
    /** Add a `bias` to its logits. Default: false. */
    readonly biased?: boolean;
  };

/** Routes the tokens of a layer, or replays given choices. The model returns the logits and the choices. */
export function routeLayer(
  m: DecoderScope,
  rows: Rows,
  layer: Layer,
  { router = "gate", transposed = false, biased = false, ...options }:
    RouterOptions,
): TokenRouting {
  const name = `${router}.weight`;
  const products = transposed
    ? dot(rows, m.param(name, "embed expert"), "embed")
    : dot(rows, m.param(name, "expert embed"), "embed");
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

/** The names of the expert matrices. `{expert}` is replaced by the number of the expert. */
export interface ExpertNames {
  readonly gate: string;
  readonly up: string;
  readonly down: string;
}

/** The names in most families. */
const NAMES: ExpertNames = {
  gate: "experts.{expert}.gate_proj.weight",
  up: "experts.{expert}.up_proj.weight",
  down: "experts.{expert}.down_proj.weight",
};

/** The names in Mixtral and related families. */
export const NUMBERED: ExpertNames = {
  gate: "experts.{expert}.w1.weight",
  up: "experts.{expert}.w3.weight",
  down: "experts.{expert}.w2.weight",
};

/** Experts with separate matrices. */
export function experts(
  m: DecoderScope<"ffn">,
  rows: Rows,
  routing: TokenRouting,
  { names = NAMES, glu = swiglu }: {
    readonly names?: ExpertNames;
    readonly glu?: Glu;
  } = {},
): Rows {
  const sent = dispatch(rows, routing);
  const hidden = glu(
    dot(sent, m.param(names.gate, "expert ffn embed"), "embed"),
    dot(sent, m.param(names.up, "expert ffn embed"), "embed"),
  );
  const done = dot(hidden, m.param(names.down, "expert embed ffn"), "ffn");
  return combine(done, routing);
}

/** Experts with one tensor for all experts. Gates and their factors share one matrix, gates first. */
export function fusedExperts(
  m: DecoderScope<"ffn" | "gateUp">,
  rows: Rows,
  routing: TokenRouting,
  { ffn, inward, outward, transposed = false, glu = swiglu, scale }: {
    readonly ffn: number;
    readonly glu?: Glu;
    /** Multiplies the result of each expert. */
    readonly scale?: Tensor<"expert", "f32">;
    /** Names of the tensors `expert gateUp embed` and `expert embed ffn`. */
    readonly inward: string;
    readonly outward: string;
    /** The tensors are `expert embed gateUp` and `expert ffn embed`. Default: false. */
    readonly transposed?: boolean;
  },
): Rows {
  const sent = dispatch(rows, routing);
  const both = transposed
    ? dot(sent, m.param(inward, "expert embed gateUp"), "embed")
    : dot(sent, m.param(inward, "expert gateUp embed"), "embed");
  const hidden = glu(
    slice(both, "gateUp", 0, "ffn"),
    slice(both, "gateUp", ffn, "ffn"),
  );
  const done = transposed
    ? dot(hidden, m.param(outward, "expert ffn embed"), "ffn")
    : dot(hidden, m.param(outward, "expert embed ffn"), "ffn");
  return combine(scale ? mul(done, scale) : done, routing);
}
