/**
 * Mamba-2 (Dao and Gu, "Transformers are SSMs", arXiv 2405.21060): a layer with a state matrix per head instead of keys
 * and values. The recurrence of section 3 is `linearRecurrence` with the rule "add". Queries are C, keys are B, values
 * are x, the rate is the step Δ, and the decay is exp(Δ A).
 */

import {
  add,
  dot,
  linearRecurrence,
  merge,
  mul,
  silu,
  slice,
  softplus,
  split,
} from "../compiler/mod.ts";
import {
  anyField,
  booleanField,
  type Config,
  fieldError,
  requireField,
  requireMultiple,
} from "./config.ts";
import type { DecoderScope, Layer, Rows } from "./decoder.ts";
import { plainNorm } from "./norms.ts";
import { convolutionAxes, convolve, decayOf } from "./recurrence.ts";

/** Sizes of a Mamba-2 layer. */
export interface Mamba {
  readonly mambaHeads: number;
  /** Number of heads of keys and queries. */
  readonly groups: number;
  /** Elements of a key and of a value. */
  readonly stateDim: number;
  readonly mambaDim: number;
  /** Number of taps of the convolution. */
  readonly taps: number;
  readonly convBias: boolean;
}

/** Checks the shared fields and the sizes. */
export function checkMamba(
  config: Config,
  c: Omit<Mamba, "convBias">,
  names: {
    readonly bias: string;
    readonly heads: string;
    readonly groups: string;
  },
): Mamba {
  requireField(config, "mamba_proj_bias", false);
  requireMultiple(
    { name: names.heads, value: c.mambaHeads },
    { name: names.groups, value: c.groups },
  );
  const limit: unknown = anyField(config, "time_step_limit") ?? [0, Infinity];
  const [low, high]: readonly unknown[] = Array.isArray(limit) ? limit : [];
  const infinite = typeof high === "object" && high !== null &&
    "__float__" in high && high.__float__ === "Infinity";
  // No f32 exceeds larger numbers, such as 1e308.
  const unlimited = infinite ||
    typeof high === "number" && Math.fround(high) === Infinity;
  if (low !== 0 || !unlimited) {
    throw fieldError(
      "time_step_limit",
      limit,
      "from 0 to infinity, the only one built",
    );
  }
  return {
    ...c,
    convBias: booleanField(config, names.bias, { default: true }),
  };
}

/** A Mamba-2 block. `groupNorm`: normalize results per group of heads instead of over all heads. */
export function mamba(
  m: DecoderScope,
  rows: Rows,
  { name, layer, c, epsilon, groupNorm }: {
    readonly name: string;
    readonly layer: Layer;
    readonly c: Mamba;
    readonly epsilon: number;
    readonly groupNorm: boolean;
  },
): Rows {
  const values = c.mambaHeads * c.mambaDim;
  const keys = c.groups * c.stateDim;
  const norms = groupNorm ? c.groups : 1;
  return m.block(name, {
    head: c.mambaHeads,
    kvHead: c.groups,
    keyDim: c.stateDim,
    valueDim: c.mambaDim,
    keys,
    values,
    channels: values + 2 * keys,
    all: 2 * values + 2 * keys + c.mambaHeads,
    normGroup: norms,
    normed: values / norms,
    ...convolutionAxes(c.taps),
  }, (m) => {
    const all = dot(rows, m.param("in_proj.weight", "all embed"), "embed");
    const gate = slice(all, "all", 0, "values");
    const mixed = convolve(m, slice(all, "all", values, "channels"), {
      layer,
      block: name,
      weight: "conv1d.weight",
    });
    const convolved = silu(
      c.convBias ? add(mixed, m.param("conv1d.bias", "channels")) : mixed,
    );
    const x = split(
      slice(convolved, "channels", 0, "values"),
      "values",
      "head valueDim",
    );
    const keysAt = (start: number) =>
      split(
        slice(convolved, "channels", start, "keys"),
        "keys",
        "kvHead keyDim",
      );
    const step = softplus(
      add(
        slice(all, "all", 2 * values + 2 * keys, "head"),
        m.param("dt_bias", "head"),
      ),
    );
    const { y, state } = linearRecurrence(
      keysAt(values + keys),
      keysAt(values),
      x,
      {
        rule: "add",
        decay: decayOf(m, step),
        rate: step,
        state: m.state("state", "sequence head keyDim valueDim"),
        sequence: layer.sequence,
        position: layer.position,
      },
    );
    layer.keep(`${layer.name}.${name}.state`, state);
    const passed = add(y, mul(x, m.param("D", "head")));
    const gated = mul(merge(passed, "head valueDim", "values"), silu(gate));
    const normed = norms === 1 ? plainNorm(gated, "values", epsilon) : merge(
      plainNorm(
        split(gated, "values", "normGroup normed"),
        "normed",
        epsilon,
      ),
      "normGroup normed",
      "values",
    );
    return dot(
      mul(normed, m.param("norm.weight", "values")),
      m.param("out_proj.weight", "embed values"),
      "values",
    );
  });
}
