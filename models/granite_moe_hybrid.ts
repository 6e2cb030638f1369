/** Granite 4, hybrid: layers of Mamba-2, and between them some of attention; the experts of GraniteMoe beside one that every token goes to. */

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
  projectHeads,
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

/** Read a config.json of `GraniteMoeHybridForCausalLM`. What it leaves out has transformers' defaults. */
function readConfig(config: Config): GraniteMoeHybridConfig {
  const field = (key: string, value: number) =>
    integerField(config, key, { default: value });
  const fields = graniteFields(config);
  const mambaHeads = field("mamba_n_heads", 128);
  const inner = field("mamba_expand", 2) * fields.embed;
  const automatic = anyField(config, "mamba_d_head") === "auto";
  const mambaDim = automatic
    ? inner / mambaHeads
    : field("mamba_d_head", inner / mambaHeads);
  if (mambaHeads * mambaDim !== inner) {
    throw fieldError("mamba_d_head", mambaDim, `${inner / mambaHeads}`);
  }
  const typeOf = layerTypes(
    config,
    ["linear_attention", "full_attention", "mamba", "attention"],
    () => "linear_attention",
  );
  const sizes = {
    mambaHeads,
    mambaDim,
    groups: field("mamba_n_groups", 1),
    stateDim: field("mamba_d_state", 256),
    taps: field("mamba_d_conv", 4),
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
      mixer: typeOf(layer).endsWith("attention") &&
          typeOf(layer) !== "linear_attention"
        ? "full_attention"
        : "linear_attention",
    }),
  };
}

/** The model of a configuration. */
function build(config: GraniteMoeHybridConfig, options: DecoderOptions): Model {
  const { multipliers, rotary, rotated, epsilon, sharedFfn } = config;
  const feed = feedGranite(config);
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
        fusedMlp(m, rows, { name: "shared_mlp", ffn: sharedFfn }),
      ),
  }, options);
}
