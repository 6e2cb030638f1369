/**
 * DeepSeek-V3: latent attention; experts chosen by sigmoids and a bias, out of the best groups only, beside an expert that
 * every token goes to; first layers without experts.
 */

import { add, type Model } from "switchyard-moe";
import {
  attendLatent,
  booleanField,
  type Config,
  decoderModel,
  type DecoderOptions,
  defineFamily,
  experts,
  integerField,
  latentAxes,
  mlp,
  requireField,
  routeLayer,
  sparseOrDense,
} from "switchyard-moe/models";
import { type DeepseekConfig, deepseekFields } from "./deepseek.ts";

/** The family of `DeepseekV3ForCausalLM`. */
export const family = defineFamily({
  architectures: ["DeepseekV3ForCausalLM"],
  config: readConfig,
  build,
  unused,
});

/** A DeepSeek-V3 configuration. */
interface DeepseekV3Config extends DeepseekConfig {
  /** Weights of a token's experts are divided by their sum. */
  readonly normalize: boolean;
  /** Layers behind the last one that predict further tokens. A checkpoint may hold them; the model does without. */
  readonly predictors: number;
}

/** Read a config.json of `DeepseekV3ForCausalLM`. What it leaves out has transformers' defaults. */
function readConfig(config: Config): DeepseekV3Config {
  requireField(config, "topk_method", "noaux_tc");
  requireField(config, "scoring_func", "sigmoid");
  requireField(config, "moe_layer_freq", 1);
  return {
    ...deepseekFields(config, {
      layers: 61,
      vocabulary: 129280,
      embed: 7168,
      heads: 128,
      denseFfn: 18432,
      ffn: 2048,
      experts: 256,
      sharedExperts: 1,
      expertsPerToken: 8,
      firstSparse: 3,
      routedScale: 2.5,
      groups: 8,
      topGroups: 4,
      maxPositions: 4096,
      epsilon: 1e-6,
      interleaved: booleanField(config, "rope_interleave", { default: true }),
    }),
    normalize: booleanField(config, "norm_topk_prob", { default: true }),
    predictors: integerField(config, "num_nextn_predict_layers", {
      default: 0,
      min: 0,
    }),
  };
}

/** Starts of the names of tensors that are for predicting further tokens. */
function unused(config: DeepseekV3Config): string[] {
  return Array.from(
    { length: config.predictors },
    (_, i) => `model.layers.${config.layers + i}.`,
  );
}

/** The model of a configuration. */
function build(
  config: DeepseekV3Config,
  options: DecoderOptions,
): Model {
  const { sharedFfn, expertGroups } = config;
  return decoderModel(config, {
    axes: latentAxes(config),
    attend: (m, rows, layer) => attendLatent(m, rows, layer, config),
    feed: sparseOrDense(config, (m, rows, layer) => {
      const routing = routeLayer(m, rows, layer, {
        topK: config.expertsPerToken,
        preset: "deepseekV3",
        // Which experts are chosen depends on it, their weights do not.
        bias: m.param("gate.e_score_correction_bias", "expert"),
        ...expertGroups ? { expertGroups } : {},
        normalize: config.normalize ? "chosen" : "none",
        scale: config.routedScale,
      });
      return add(
        experts(m, rows, routing),
        mlp(m, rows, { name: "shared_experts", ffn: sharedFfn }),
      );
    }),
  }, options);
}
