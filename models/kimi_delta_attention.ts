/**
 * Kimi Delta Attention (Kimi Team, "Kimi Linear", arXiv 2510.26692): a gated delta net whose decay differs between the
 * elements of a key. The recurrence of section 3 is `linearRecurrence` with the rule "delta": `decay` is α of each
 * element, `rate` is β.
 */

import {
  add,
  dot,
  exp,
  linearRecurrence,
  merge,
  mul,
  neg,
  rmsNorm,
  sigmoid,
  silu,
  slice,
  softplus,
  split,
  type Tensor,
} from "../compiler/mod.ts";
import {
  anyField,
  booleanField,
  type Config,
  fieldError,
  innerConfig,
  integerField,
  integersField,
} from "./config.ts";
import type { DecoderScope, Layer, Rows } from "./decoder.ts";
import { unitNorm } from "./norms.ts";
import {
  convolutionAxes,
  type ConvolutionAxis,
  convolve,
} from "./recurrence.ts";

/**
 * How a checkpoint stores `A_log`: an element per head, such elements with zeros up to a multiple of 128 heads, or with
 * three axes of 1 besides heads.
 */
export type StoredDecays = "heads" | "padded" | "axes";

/** Sizes of a Kimi Delta Attention, and its variants. */
export interface KimiDelta {
  readonly deltaHeads: number;
  /** Elements of a query, a key and a value. */
  readonly deltaDim: number;
  /** Number of taps of the convolutions. */
  readonly taps: number;
  /** Lower limit of the logarithm of decays, below 0. Undefined: none. */
  readonly decayLimit: number | undefined;
  readonly decays: StoredDecays;
  /** The gate is one product instead of two with a short row between them, and so are the decays. */
  readonly wholeGate: boolean;
  readonly wholeDecays?: boolean;
  /** Whether a layer has it; the others have latent attention. */
  readonly isDelta: (layer: number) => boolean;
}

/** Reads the object `linear_attn_config`, which numbers layers from 1. */
export function kimiDeltaFields(
  config: Config,
  defaults: {
    readonly layers: number;
    readonly heads: number;
    readonly wholeGate: boolean;
    readonly decays: StoredDecays;
    readonly decayLimit?: number;
  },
): KimiDelta {
  const inner = innerConfig(config, "linear_attn_config") ?? {};
  const all = Array.from({ length: defaults.layers }, (_, layer) => layer + 1);
  const full = integersField(inner, "full_attn_layers") ??
    all.filter((layer) => layer % 4 === 0 || layer === defaults.layers);
  const delta = integersField(inner, "kda_layers") ??
    all.filter((layer) => !full.includes(layer));
  if (all.some((layer) => delta.includes(layer) === full.includes(layer))) {
    throw fieldError(
      "kda_layers",
      delta,
      "all layers that 'full_attn_layers' does not list",
    );
  }
  const field = (key: string, value: number, min = 1) =>
    integerField(inner, key, { default: value, min });
  return {
    deltaHeads: field("num_heads", defaults.heads),
    deltaDim: field("head_dim", 128),
    taps: field("short_conv_kernel_size", 4, 2),
    decayLimit: readDecayLimit(inner, "gate_lower_bound", defaults.decayLimit),
    decays: defaults.decays,
    wholeGate: booleanField(inner, "use_full_rank_gate", {
      default: defaults.wholeGate,
    }),
    isDelta: (layer) => !full.includes(layer + 1),
  };
}

/** Reads the lower limit of logarithms of decays; `null` is none. */
export function readDecayLimit(
  config: Config,
  key: string,
  byDefault: number | undefined,
): number | undefined {
  const value: unknown = anyField(config, key);
  if (value === undefined) return byDefault;
  if (value === null) return undefined;
  if (typeof value === "number" && value < 0 && Number.isFinite(value)) {
    return value;
  }
  throw fieldError(key, value, "a number below 0");
}

/** Heads of a padded `A_log` are a multiple of this. */
const PADDING = 128;

/**
 * Axes of the block. `channels` are all elements of all heads; `short` is the row between two products; in files,
 * `each` are heads, and `batch`, `step` and `one` are axes of 1.
 */
type KimiDeltaAxis =
  | ConvolutionAxis
  | "channels"
  | "keyDim"
  | "valueDim"
  | "short"
  | "padded"
  | "batch"
  | "step"
  | "each";

type KimiDeltaScope = DecoderScope<KimiDeltaAxis>;

type Channels = Tensor<"token channels", "f32">;

/** A Kimi Delta Attention and its block. Default: `self_attn`. */
export interface KimiDeltaBlock extends KimiDelta {
  readonly epsilon: number;
  readonly block?: string;
}

/** The Kimi Delta Attention of a layer. */
export function kimiDeltaAttention(
  m: DecoderScope,
  rows: Rows,
  layer: Layer,
  c: KimiDeltaBlock,
): Rows {
  return m.block(c.block ?? "self_attn", {
    head: c.deltaHeads,
    keyDim: c.deltaDim,
    valueDim: c.deltaDim,
    channels: c.deltaHeads * c.deltaDim,
    short: c.deltaDim,
    padded: Math.ceil(c.deltaHeads / PADDING) * PADDING,
    batch: 1,
    step: 1,
    each: c.deltaHeads,
    ...convolutionAxes(c.taps),
  }, (m) => attend(m, rows, layer, c));
}

function attend(
  m: KimiDeltaScope,
  rows: Rows,
  layer: Layer,
  c: KimiDeltaBlock,
): Rows {
  const { block = "self_attn" } = c;
  const convolved = (name: "q" | "k" | "v") =>
    silu(
      convolve(m, project(m, rows, `${name}_proj`), {
        layer,
        block,
        weight: `${name}_conv1d.weight`,
        state: `${name}_inputs`,
      }),
    );
  const unit = (x: Channels) =>
    unitNorm(split(x, "channels", "head keyDim"), "keyDim");
  const { y, state } = linearRecurrence(
    mul(unit(convolved("q")), c.deltaDim ** -0.5),
    unit(convolved("k")),
    split(convolved("v"), "channels", "head valueDim"),
    {
      rule: "delta",
      decay: decays(m, projectAs(m, rows, "f", c.wholeDecays), c),
      rate: sigmoid(dot(rows, m.param("b_proj.weight", "head embed"), "embed")),
      state: m.state("state", "sequence head keyDim valueDim"),
      sequence: layer.sequence,
      position: layer.position,
    },
  );
  layer.keep(`${layer.name}.${block}.state`, state);
  const normed = rmsNorm(y, m.param("o_norm.weight", "valueDim"), "valueDim", {
    epsilon: c.epsilon,
  });
  const gate = projectAs(m, rows, "g", c.wholeGate);
  return dot(
    mul(merge(normed, "head valueDim", "channels"), sigmoid(gate)),
    m.param("o_proj.weight", "embed channels"),
    "channels",
  );
}

function project(m: KimiDeltaScope, rows: Rows, name: string): Channels {
  return dot(rows, m.param(`${name}.weight`, "channels embed"), "embed");
}

/** The product with `NAME_proj`, or with `NAME_a_proj` and `NAME_b_proj`. */
function projectAs(
  m: KimiDeltaScope,
  rows: Rows,
  name: "f" | "g",
  whole = false,
): Channels {
  if (whole) return project(m, rows, `${name}_proj`);
  const down = m.param(`${name}_a_proj.weight`, "short embed");
  const up = m.param(`${name}_b_proj.weight`, "channels short");
  return dot(dot(rows, down, "embed"), up, "short");
}

/** The decay of each key element: exp(-exp(A_log) · softplus(x)), or exp(limit · sigmoid(exp(A_log) · x)). */
function decays(
  m: KimiDeltaScope,
  made: Channels,
  { decayLimit, decays: stored }: KimiDelta,
): Tensor<"token head keyDim", "f32"> {
  const x = split(
    add(made, m.param("dt_bias", "channels")),
    "channels",
    "head keyDim",
  );
  const logs = {
    heads: () => m.param("A_log", "head"),
    padded: () => slice(m.param("A_log", "padded"), "padded", 0, "head"),
    axes: () =>
      merge(
        m.param("A_log", "batch step each one"),
        "batch step each one",
        "head",
      ),
  };
  const factor = exp(logs[stored]());
  return decayLimit === undefined
    ? exp(mul(softplus(x), neg(factor)))
    : exp(mul(sigmoid(mul(x, factor)), decayLimit));
}
