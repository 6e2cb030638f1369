/**
 * Gated delta net (Yang et al., "Gated Delta Networks", arXiv 2412.06464): a layer with a state matrix per head instead
 * of keys and values. Equation 10 is `linearRecurrence` with the rule "delta": `decay` is α, `rate` is β.
 */

import {
  add,
  concat,
  dot,
  linearRecurrence,
  merge,
  mul,
  rename,
  rmsNorm,
  sigmoid,
  silu,
  slice,
  softplus,
  split,
  type Tensor,
} from "../compiler/mod.ts";
import { type Config, integerField, requireMultiple } from "./config.ts";
import type { DecoderScope, Layer, Rows } from "./decoder.ts";
import { unitNorm } from "./norms.ts";
import {
  convolutionAxes,
  type ConvolutionAxis,
  convolve,
  decayOf,
} from "./recurrence.ts";

/** Sizes of a gated delta net. */
export interface DeltaNet {
  readonly keyHeads: number;
  readonly valueHeads: number;
  readonly keyDim: number;
  readonly valueDim: number;
  /** Number of taps of the convolution. */
  readonly taps: number;
}

/** Reads the fields of a gated delta net. */
export function deltaNetFields(config: Config): DeltaNet {
  const field = (key: string, value: number) =>
    integerField(config, `linear_${key}`, { default: value });
  const keyHeads = field("num_key_heads", 16);
  const valueHeads = field("num_value_heads", 32);
  requireMultiple(
    { name: "linear_num_value_heads", value: valueHeads },
    { name: "linear_num_key_heads", value: keyHeads },
  );
  return {
    keyHeads,
    valueHeads,
    keyDim: field("key_head_dim", 128),
    valueDim: field("value_head_dim", 128),
    taps: integerField(config, "linear_conv_kernel_dim", {
      default: 4,
      min: 2,
    }),
  };
}

/**
 * Axes of the block. `head` and `kvHead` are heads of values and of keys. The others are all keys, all values, the
 * convolved channels, and the projection of Qwen3-Next per head of keys.
 */
type DeltaAxis =
  | ConvolutionAxis
  | "kvHead"
  | "keyDim"
  | "valueDim"
  | "keys"
  | "values"
  | "bothKeys"
  | "channels"
  | "perKey"
  | "perKeyValues"
  | "grouped"
  | "groupedPair"
  | "allGrouped"
  | "pairs";

type DeltaScope = DecoderScope<DeltaAxis>;

/** The projections of a row. */
export interface DeltaRows {
  /** Queries, keys and values before the convolution. */
  readonly mixed: Tensor<"token channels", "f32">;
  /** The gate of the result. */
  readonly gate: Tensor<"token values", "f32">;
  /** The inputs of the rate and the decay. */
  readonly rate: Tensor<"token head", "f32">;
  readonly decay: Tensor<"token head", "f32">;
}

/** The block `linear_attn` of a layer, given the projections of its rows. */
export function deltaNet(
  m: DecoderScope,
  rows: Rows,
  { layer, c, epsilon, project }: {
    readonly layer: Layer;
    readonly c: DeltaNet;
    readonly epsilon: number;
    readonly project: (m: DeltaScope, rows: Rows, c: DeltaNet) => DeltaRows;
  },
): Rows {
  const keys = c.keyHeads * c.keyDim;
  const values = c.valueHeads * c.valueDim;
  const perKey = c.valueHeads / c.keyHeads;
  return m.block("linear_attn", {
    head: c.valueHeads,
    kvHead: c.keyHeads,
    keyDim: c.keyDim,
    valueDim: c.valueDim,
    keys,
    values,
    bothKeys: 2 * keys,
    channels: 2 * keys + values,
    perKey,
    perKeyValues: perKey * c.valueDim,
    grouped: 2 * c.keyDim + 2 * perKey * c.valueDim,
    groupedPair: 2 * perKey,
    allGrouped: 2 * keys + 2 * values,
    pairs: 2 * c.valueHeads,
    ...convolutionAxes(c.taps),
  }, (m) => attend(m, project(m, rows, c), { layer, c, epsilon }));
}

function attend(
  m: DeltaScope,
  made: DeltaRows,
  { layer, c, epsilon }: {
    readonly layer: Layer;
    readonly c: DeltaNet;
    readonly epsilon: number;
  },
): Rows {
  const block = "linear_attn";
  const keys = c.keyHeads * c.keyDim;
  const convolved = silu(
    convolve(m, made.mixed, { layer, block, weight: "conv1d.weight" }),
  );
  const unit = (x: Tensor<"token keys", "f32">) =>
    unitNorm(split(x, "keys", "kvHead keyDim"), "keyDim");
  const { y, state } = linearRecurrence(
    mul(unit(slice(convolved, "channels", 0, "keys")), c.keyDim ** -0.5),
    unit(slice(convolved, "channels", keys, "keys")),
    split(
      slice(convolved, "channels", 2 * keys, "values"),
      "values",
      "head valueDim",
    ),
    {
      rule: "delta",
      decay: decayOf(m, softplus(add(made.decay, m.param("dt_bias", "head")))),
      rate: sigmoid(made.rate),
      state: m.state("state", "sequence head keyDim valueDim"),
      sequence: layer.sequence,
      position: layer.position,
    },
  );
  layer.keep(`${layer.name}.${block}.state`, state);
  const normed = rmsNorm(y, m.param("norm.weight", "valueDim"), "valueDim", {
    epsilon,
  });
  const gate = split(made.gate, "values", "head valueDim");
  return dot(
    merge(mul(normed, silu(gate)), "head valueDim", "values"),
    m.param("out_proj.weight", "embed values"),
    "values",
  );
}

/** One projection of queries, keys and values, and one each of the gate, the rate and the decay: Qwen3.5. */
export function projectFlat(
  m: DeltaScope,
  rows: Rows,
): DeltaRows {
  const heads = (name: string) =>
    dot(rows, m.param(`${name}.weight`, "head embed"), "embed");
  return {
    ...flatChannels(m, rows),
    rate: heads("in_proj_b"),
    decay: heads("in_proj_a"),
  };
}

function flatChannels(
  m: DeltaScope,
  rows: Rows,
): Pick<DeltaRows, "mixed" | "gate"> {
  const mixed = m.param("in_proj_qkv.weight", "channels embed");
  return {
    mixed: dot(rows, mixed, "embed"),
    gate: dot(rows, m.param("in_proj_z.weight", "values embed"), "embed"),
  };
}

/** As `projectFlat`, with rates and decays in groups: Qwen3-Next in GGUF files. */
export function projectSplit(
  m: DeltaScope,
  rows: Rows,
  c: DeltaNet,
): DeltaRows {
  return { ...flatChannels(m, rows), ...groupedRates(m, rows, c) };
}

/** Rates and decays of the value heads, in groups by head of keys. */
function groupedRates(
  m: DeltaScope,
  rows: Rows,
  c: DeltaNet,
): Pick<DeltaRows, "rate" | "decay"> {
  const pairs = split(
    dot(rows, m.param("in_proj_ba.weight", "pairs embed"), "embed"),
    "pairs",
    "kvHead groupedPair",
  );
  const headsAt = (start: number) =>
    merge(
      slice(pairs, "groupedPair", start, "perKey"),
      "kvHead perKey",
      "head",
    );
  return { rate: headsAt(0), decay: headsAt(c.valueHeads / c.keyHeads) };
}

/** Projections in groups: one per head of keys, with the heads of values that read it. Used by Qwen3-Next. */
export function projectGrouped(
  m: DeltaScope,
  rows: Rows,
  c: DeltaNet,
): DeltaRows {
  const { keyDim } = c;
  const values = c.valueHeads / c.keyHeads * c.valueDim;
  const all = split(
    dot(rows, m.param("in_proj_qkvz.weight", "allGrouped embed"), "embed"),
    "allGrouped",
    "kvHead grouped",
  );
  const keysAt = (start: number) =>
    merge(slice(all, "grouped", start, "keyDim"), "kvHead keyDim", "keys");
  const valuesAt = (start: number) =>
    merge(
      slice(all, "grouped", start, "perKeyValues"),
      "kvHead perKeyValues",
      "values",
    );
  return {
    mixed: concat(
      concat(
        keysAt(0),
        rename(keysAt(keyDim), "keys", "laterKeys"),
        "keys",
        "bothKeys",
      ),
      valuesAt(2 * keyDim),
      "bothKeys",
      "channels",
    ),
    gate: valuesAt(2 * keyDim + values),
    ...groupedRates(m, rows, c),
  };
}
