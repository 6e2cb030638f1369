/** DeepSeek-V2: latent attention, group-limited routing and shared experts. */

import { add, type Model } from "switchyard-moe";
import {
  anyField,
  attendLatent,
  type Config,
  decoderModel,
  type DecoderOptions,
  defineFamily,
  experts,
  fieldError,
  latentAxes,
  mlp,
  requireField,
  routeLayer,
  sparseOrDense,
} from "switchyard-moe/models";
import { type DeepseekConfig, deepseekFields } from "./deepseek.ts";

/** The family of `DeepseekV2ForCausalLM`. */
export const family = defineFamily({
  architectures: ["DeepseekV2ForCausalLM"],
  config: readConfig,
  build,
});

/**
 * Reads a config.json of `DeepseekV2ForCausalLM`. Missing fields have transformers' defaults. Weights are never divided
 * by their sum, because transformers does not read `norm_topk_prob`. A file that sets it is rejected.
 */
function readConfig(config: Config): DeepseekConfig {
  requireField(config, "norm_topk_prob", false);
  requireField(config, "moe_layer_freq", 1);
  requireField(config, "mlp_bias", false);
  requireField(config, "scoring_func", "softmax");
  const method = anyField(config, "topk_method") ?? "greedy";
  if (method !== "greedy" && method !== "group_limited_greedy") {
    throw fieldError(
      "topk_method",
      method,
      "'greedy' or 'group_limited_greedy'",
    );
  }
  const fields = deepseekFields(config, {
    layers: 32,
    vocabulary: 32000,
    embed: 4096,
    heads: 32,
    denseFfn: 11008,
    ffn: 1407,
    experts: 64,
    sharedExperts: 2,
    expertsPerToken: 6,
    firstSparse: 0,
    routedScale: 1,
    normalize: false,
    groups: 1,
    topGroups: 1,
    maxPositions: 2048,
    epsilon: 1e-6,
    interleaved: true,
  });
  return method === "greedy" ? { ...fields, expertGroups: undefined } : fields;
}

/** Builds the model of a configuration. */
function build(
  config: DeepseekConfig,
  options: DecoderOptions,
): Model {
  const { sharedFfn, expertGroups } = config;
  return decoderModel(config, {
    axes: latentAxes(config),
    attend: (m, rows, layer) => attendLatent(m, rows, layer, config),
    feed: sparseOrDense(config, (m, rows, layer) => {
      const routing = routeLayer(m, rows, layer, {
        topK: config.expertsPerToken,
        preset: "deepseekV2",
        ...expertGroups ? { expertGroups } : {},
        scale: config.routedScale,
      });
      return add(
        experts(m, rows, routing),
        mlp(m, rows, { name: "shared_experts", ffn: sharedFfn }),
      );
    }),
  }, options);
}
