/**
 * Kimi-Linear: layers of Kimi Delta Attention, some layers of latent attention without positions between them, and the
 * experts of DeepSeek-V3.
 */

import { add, type Model } from "switchyard-moe";
import {
  attendLatent,
  type Config,
  type DecoderDefaults,
  decoderFields,
  decoderModel,
  type DecoderOptions,
  defineFamily,
  experts,
  ignoreFields,
  type KimiDelta,
  kimiDeltaAttention,
  kimiDeltaFields,
  latentAxes,
  latentFields,
  mlp,
  NUMBERED,
  requireField,
  routeShared,
  type SharedExpertDefaults,
  sharedExperts,
  sparseOrDense,
  type StoredDecays,
} from "switchyard-moe/models";
import type { DeepseekConfig } from "./deepseek.ts";

/** The family of `KimiLinearForCausalLM`. */
export const family = defineFamily({
  architectures: ["KimiLinearForCausalLM"],
  config: readConfig,
  build,
});

/** A Kimi-Linear configuration. */
export interface KimiLinearConfig extends DeepseekConfig, KimiDelta {}

/** Defaults that differ between Kimi-Linear and Kimi-K3. */
export interface KimiDefaults
  extends DecoderDefaults, Omit<SharedExpertDefaults, "normalize"> {
  readonly heads: number;
  /** `null`: queries are not compressed. */
  readonly queryLatent: number | null;
  readonly wholeGate: boolean;
  readonly decays: StoredDecays;
  readonly decayLimit?: number;
  /** Name of the field with the maximum positions. */
  readonly positions: string;
}

/** Reads a config.json. Missing fields have the values of Kimi-Linear-48B-A3B. */
function readConfig(config: Config): KimiLinearConfig {
  return kimiFields(config, {
    layers: 27,
    vocabulary: 163840,
    embed: 2304,
    heads: 32,
    queryLatent: null,
    denseFfn: 9216,
    ffn: 1024,
    experts: 256,
    sharedExperts: 1,
    expertsPerToken: 8,
    firstSparse: 1,
    routedScale: 2.446,
    wholeGate: false,
    decays: "axes",
    maxPositions: 1048576,
    positions: "model_max_length",
    epsilon: 1e-5,
  });
}

/** Reads the fields of Kimi-Linear and Kimi-K3. */
export function kimiFields(
  config: Config,
  defaults: KimiDefaults,
): KimiLinearConfig {
  requireField(config, "moe_router_activation_func", "sigmoid");
  requireField(config, "moe_layer_freq", 1);
  requireField(config, "mla_use_nope", true);
  requireField(config, "num_nextn_predict_layers", 0);
  // Latent attention has its own sizes, and no positions. Groups are chosen where there are several.
  ignoreFields(config, [
    "head_dim",
    "num_key_value_heads",
    "rope_scaling",
    "rope_theta",
    "use_grouped_topk",
  ]);
  const fields = decoderFields(config, defaults, {
    experts: "num_experts",
    ffn: "moe_intermediate_size",
    expertsPerToken: "num_experts_per_token",
    maxPositions: defaults.positions,
  });
  const { layers, ffn } = fields;
  const delta = kimiDeltaFields(config, { ...defaults, layers });
  const shared = sharedExperts(config, ffn, { ...defaults, normalize: true }, {
    sharedExperts: "num_shared_experts",
    groups: "num_expert_group",
    normalize: "moe_renormalize",
  });
  return {
    ...latentFields(config, { ...defaults, interleaved: false }),
    ...fields,
    ...shared,
    ...delta,
    kindOf: (layer) => ({
      ...shared.kindOf(layer),
      mixer: delta.isDelta(layer) ? "delta" : "latent",
    }),
  };
}

/** Builds the model of a configuration. */
function build(config: KimiLinearConfig, options: DecoderOptions): Model {
  const { sharedFfn } = config;
  return decoderModel(config, {
    axes: latentAxes(config),
    attend: (m, rows, layer) =>
      layer.kind.mixer === "delta"
        ? kimiDeltaAttention(m, rows, layer, config)
        : attendLatent(m, rows, layer, { ...config, rotated: false }),
    feed: sparseOrDense(config, (m, rows, layer) => {
      const routing = routeShared(m, rows, layer, config);
      return add(
        experts(m, rows, routing, { names: NUMBERED }),
        mlp(m, rows, { name: "shared_experts", ffn: sharedFfn }),
      );
    }, "block_sparse_moe"),
  }, options);
}
