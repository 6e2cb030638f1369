/** DeepSeek-V3.2: DeepSeek-V3 with sparse attention, where an indexer chooses the keys of each token. */

import type { Model } from "switchyard-moe";
import {
  attendLatent,
  booleanField,
  type Config,
  decoderModel,
  type DecoderOptions,
  defineFamily,
  feedShared,
  type Indexer,
  indexerFields,
  latentAxes,
  nextLayer,
  predictorTensors,
  requireField,
  requireLayerTypes,
  selectByIndexer,
  type Selected,
} from "switchyard-moe/models";
import {
  DEEPSEEK_V3,
  type DeepseekConfig,
  type DeepseekDefaults,
  deepseekFields,
} from "./deepseek.ts";

/** The family of `DeepseekV32ForCausalLM`. */
export const family = defineFamily({
  architectures: ["DeepseekV32ForCausalLM"],
  config: (config) =>
    sparseFields(config, {
      ...DEEPSEEK_V3,
      interleaved: booleanField(config, "rope_interleave", { default: true }),
      indexHeads: 64,
      indexInterleaved: false,
    }),
  build: buildSparse,
  unused: predictorTensors,
});

/** A configuration of latent attention with an indexer. */
export interface SparseConfig extends DeepseekConfig, Indexer {
  /** Returns whether a layer uses the keys that the last earlier layer with an indexer chose. */
  readonly sharesKeys?: (layer: number) => boolean;
}

/** Defaults that differ between families. */
export interface SparseDefaults extends DeepseekDefaults {
  readonly indexHeads: number;
  readonly indexInterleaved: boolean;
}

/** Reads a config.json. Missing fields have the family's defaults. */
export function sparseFields(
  config: Config,
  defaults: SparseDefaults,
): SparseConfig {
  requireField(config, "topk_method", "noaux_tc");
  requireField(config, "scoring_func", "sigmoid");
  requireField(config, "moe_layer_freq", 1);
  requireField(config, "mlp_bias", false);
  requireLayerTypes(config, () => "deepseek_sparse_attention");
  const fields = deepseekFields(config, defaults);
  return {
    ...fields,
    ...indexerFields(config, {
      heads: defaults.indexHeads,
      rotary: { ...fields.rotary, interleaved: defaults.indexInterleaved },
    }),
  };
}

/** Builds the model of a configuration. */
export function buildSparse(
  config: SparseConfig,
  options: DecoderOptions,
): Model {
  const indexKeys = Math.min(config.indexKeys, options.maxContext);
  return decoderModel(config, {
    axes: { ...latentAxes(config), selected: indexKeys },
    predictor: nextLayer(config),
    begin() {
      let last: Selected | undefined;
      const feed = feedShared(config);
      return {
        layer: (scope, x, layer) => {
          // The choice of an earlier layer. A layer that is planned alone has its own indexer.
          const given = config.sharesKeys?.(layer.index) ? last : undefined;
          const attended = layer.residual(x, (x) => {
            const rows = layer.norm(scope, x, "input_layernorm.weight");
            return attendLatent(scope, rows, layer, {
              ...config,
              select: (m, short) =>
                last = given ??
                  selectByIndexer(
                    m,
                    { rows, short, layer, block: "self_attn" },
                    {
                      ...config,
                      indexKeys,
                    },
                  ),
            });
          });
          return layer.residual(
            layer.pick(scope, attended),
            (x) =>
              feed(
                scope,
                layer.norm(scope, x, "post_attention_layernorm.weight"),
                layer,
              ),
          );
        },
      };
    },
  }, options);
}
