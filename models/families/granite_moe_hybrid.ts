/**
 * Granite 4, hybrid: Mamba-2 layers with some attention layers between them, and the experts of GraniteMoe with a
 * shared expert.
 */

import { add, type Model } from "switchyard-moe";
import {
  anyField,
  attendHeads,
  checkMamba,
  type Config,
  decoderModel,
  type DecoderOptions,
  defineFamily,
  fieldError,
  fusedMlp,
  groupedAxes,
  integerField,
  layerTypes,
  type Mamba,
  mamba,
  mlp,
  projectHeads,
  requireMultiple,
  rotate,
} from "switchyard-moe/models";
import {
  feedGranite,
  graniteFields,
  type GraniteMoeConfig,
} from "./granite_moe.ts";

/** The family of `GraniteMoeHybridForCausalLM`. */
export const family = defineFamily({
  architectures: ["GraniteMoeHybridForCausalLM"],
  config: readConfig,
  build,
});

/** A Granite 4 configuration. */
interface GraniteMoeHybridConfig extends GraniteMoeConfig, Mamba {
  readonly sharedFfn: number;
  /** Queries and keys are rotated by their positions. */
  readonly rotated: boolean;
}

/** Reads a config.json of `GraniteMoeHybridForCausalLM`. Missing fields have transformers' defaults. */
function readConfig(config: Config): GraniteMoeHybridConfig {
  const field = (key: string, value: number, min = 1) =>
    integerField(config, key, { default: value, min });
  const fields = graniteFields(config);
  const mambaHeads = field("mamba_n_heads", 128);
  const inner = field("mamba_expand", 2) * fields.embed;
  requireMultiple(
    { name: "mamba_expand * hidden_size", value: inner },
    { name: "mamba_n_heads", value: mambaHeads },
  );
  const mambaDim = inner / mambaHeads;
  const given = anyField(config, "mamba_d_head") === "auto"
    ? mambaDim
    : field("mamba_d_head", mambaDim);
  if (given !== mambaDim) {
    throw fieldError("mamba_d_head", given, `${mambaDim}`);
  }
  const typeOf = layerTypes(
    config,
    ["linear_attention", "full_attention", "mamba", "attention"],
    () => "linear_attention",
  );
  const attends = (layer: number) =>
    ["attention", "full_attention"].includes(typeOf(layer));
  const sizes = {
    mambaHeads,
    mambaDim,
    groups: field("mamba_n_groups", 1),
    stateDim: field("mamba_d_state", 256),
    taps: field("mamba_d_conv", 4, 2),
  };
  return {
    ...fields,
    ...checkMamba(config, sizes, {
      bias: "mamba_conv_bias",
      heads: "mamba_n_heads",
      groups: "mamba_n_groups",
    }),
    sharedFfn: field("shared_intermediate_size", 1024),
    rotated: anyField(config, "position_embedding_type") === "rope",
    kindOf: (layer) => ({
      experts: true,
      mixer: attends(layer) ? "full_attention" : "linear_attention",
    }),
  };
}

/** Builds the model of a configuration. */
function build(config: GraniteMoeHybridConfig, options: DecoderOptions): Model {
  const { multipliers, rotary, rotated, epsilon, sharedFfn } = config;
  const feed = feedGranite(config);
  const shared = config.fused ? fusedMlp : mlp;
  return decoderModel(config, {
    axes: groupedAxes(config),
    multipliers: { ...multipliers, logits: 1 / multipliers.logits },
    attend: (m, rows, layer) =>
      layer.kind.mixer === "full_attention"
        ? m.block("self_attn", {}, (m) => {
          const heads = projectHeads(m, rows);
          const ready = rotated ? rotate(heads, rotary, layer) : heads;
          return attendHeads(m, ready, layer, { scale: multipliers.attention });
        })
        : mamba(m, rows, {
          name: "mamba",
          layer,
          c: config,
          epsilon,
          groupNorm: false,
        }),
    feed: (m, rows, layer) =>
      add(
        feed(m, rows, layer),
        shared(m, rows, { name: "shared_mlp", ffn: sharedFfn }),
      ),
  }, options);
}
