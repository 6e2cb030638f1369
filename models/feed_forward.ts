/** Feed-forward blocks: gated, dense or of experts whose matrices are tensors of their own. */

import {
  add,
  combine,
  dispatch,
  dot,
  mul,
  route,
  type RouteOptions,
  type Routing,
  type RoutingPreset,
  slice,
  swiglu,
  type Tensor,
} from "../compiler/mod.ts";
import type { DecoderScope, Layer, Part, Rows } from "./decoder.ts";

/** What gates and what they multiply become: `swiglu`, or another gated unit. */
export type Glu = <A extends string>(
  gate: Tensor<A, "f32">,
  up: Tensor<A, "f32">,
) => Tensor<A, "f32">;

/** A routing of a decoder's tokens. */
export type TokenRouting = Routing<"token", "expert", "slot", "choice">;

/** `gate_proj`, `up_proj` and `down_proj` of a block that every token goes through. */
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

/** `input_linear`, gates first, and `output_linear` of a block that every token goes through. */
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

/** `feed` of families where some layers have no experts: the block `mlp` has those of `sparse`, or is dense. */
export function sparseOrDense(
  { ffn, denseFfn }: { readonly ffn: number; readonly denseFfn: number },
  sparse: Part<"ffn" | "gateUp">,
): Part {
  return (m, rows, layer) =>
    layer.kind.experts
      ? m.block(
        "mlp",
        { ffn, gateUp: 2 * ffn },
        (m) => sparse(m, rows, layer),
      )
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

/** Experts whose matrices of gates and of what they multiply are one tensor for all experts, gates first. */
export function fusedExperts(
  m: DecoderScope<"ffn" | "gateUp">,
  rows: Rows,
  routing: TokenRouting,
  { ffn, inward, outward, glu = swiglu, scale }: {
    readonly ffn: number;
    readonly glu?: Glu;
    /** Multiplies what each expert makes. */
    readonly scale?: Tensor<"expert", "f32">;
    /** Names of tensors, `expert gateUp embed` and `expert embed ffn`. */
    readonly inward: string;
    readonly outward: string;
  },
): Rows {
  const both = dot(
    dispatch(rows, routing),
    m.param(inward, "expert gateUp embed"),
    "embed",
  );
  const hidden = glu(
    slice(both, "gateUp", 0, "ffn"),
    slice(both, "gateUp", ffn, "ffn"),
  );
  const done = dot(hidden, m.param(outward, "expert embed ffn"), "ffn");
  return combine(scale ? mul(done, scale) : done, routing);
}
