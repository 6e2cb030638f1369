/**
 * Mistral Small 4: the latent attention of DeepSeek, whose queries grow with the position, and the experts of
 * DeepSeek-V3 with softmax scores and no selection bias. The text model of a model of text and images.
 */

import { add, type Model } from "switchyard-moe";
import {
  attendLatent,
  booleanField,
  type Config,
  decoderModel,
  type DecoderNames,
  type DecoderOptions,
  defineFamily,
  experts,
  fieldError,
  fusedExperts,
  ignoreFields,
  integerField,
  latentAxes,
  mlp,
  optionalField,
  requireField,
  ropeScaling,
  routeLayer,
  sparseOrDense,
  type Temperature,
  temperature,
  textConfig,
  WRAPPED_CAUSAL,
} from "switchyard-moe/models";
import { type DeepseekConfig, deepseekFields } from "./deepseek.ts";

/** The family of `Mistral4ForCausalLM`, and of `Mistral3ForConditionalGeneration` with this text model. */
export const family = defineFamily({
  architectures: ["Mistral4ForCausalLM", "Mistral3ForConditionalGeneration"],
  config: readConfig,
  build,
  unused: ({ wrapped }) =>
    wrapped ? ["vision_tower.", "multi_modal_projector."] : [],
});

/** A Mistral Small 4 configuration. */
interface Mistral4Config extends DeepseekConfig {
  /** Growth of queries with the position. Undefined: they do not grow. */
  readonly temperature: Temperature | undefined;
  /** Experts are one tensor. In GGUF files they are separate. */
  readonly fused: boolean;
  /** Tensors have the names of a model of text and images. */
  readonly wrapped: boolean;
}

/** The rotary scaling of a config.json without one. */
const YARN = {
  rope_type: "yarn",
  rope_theta: 10000,
  factor: 128,
  original_max_position_embeddings: 8192,
  beta_fast: 32,
  beta_slow: 1,
  mscale: 1,
  mscale_all_dim: 1,
  llama_4_scaling_beta: 0.1,
};

/** Reads a config.json of Mistral Small 4. Missing fields have transformers' defaults. */
function readConfig(document: Config): Mistral4Config {
  const { config, wrapped } = textConfig(document);
  if (wrapped) {
    ignoreFields(document, [
      "multimodal_projector_bias",
      "projector_hidden_act",
      "spatial_merge_size",
    ]);
  }
  requireField(config, "model_type", "mistral4");
  const { partial_rotary_factor: part, ...scaling } = ropeScaling(
    config,
    YARN,
  );
  const fields = deepseekFields({
    ...config,
    rope_scaling: undefined,
    rope_parameters: scaling,
  }, {
    layers: 36,
    vocabulary: 131072,
    embed: 4096,
    heads: 32,
    nope: 64,
    latent: 256,
    queryLatent: 1024,
    denseFfn: 12288,
    ffn: 2048,
    experts: 128,
    sharedExperts: 1,
    expertsPerToken: 4,
    firstSparse: 0,
    routedScale: 1,
    normalize: true,
    maxPositions: 1048576,
    epsilon: 1e-6,
    interleaved: booleanField(config, "rope_interleave", { default: true }),
  });
  // transformers counts the rotated elements of the whole head.
  const rotated = fields.headDim / (fields.nope + fields.headDim);
  if ((part ?? rotated) !== rotated) {
    throw fieldError("partial_rotary_factor", part, String(rotated));
  }
  const scale = optionalField(scaling, "llama_4_scaling_beta");
  return {
    ...fields,
    temperature: scale === undefined ? undefined : {
      scale,
      floor: integerField(scaling, "original_max_position_embeddings"),
    },
    fused: booleanField(config, "fused_experts", { default: true }),
    wrapped,
  };
}

/** Builds the model of a configuration. */
function build(config: Mistral4Config, options: DecoderOptions): Model {
  const { ffn, sharedFfn, expertGroups, fused } = config;
  const names: Partial<DecoderNames> = config.wrapped ? WRAPPED_CAUSAL : {};
  return decoderModel(config, {
    axes: latentAxes(config),
    names,
    attend: (m, rows, layer) =>
      attendLatent(m, rows, layer, {
        ...config,
        ...config.temperature
          ? { growth: temperature(layer.position, config.temperature) }
          : {},
      }),
    feed: sparseOrDense(config, (m, rows, layer) => {
      const routing = routeLayer(m, rows, layer, {
        topK: config.expertsPerToken,
        preset: "deepseekV3",
        score: "softmax",
        ...expertGroups ? { expertGroups } : {},
        normalize: config.normalize ? "chosen" : "none",
        scale: config.routedScale,
      });
      const routed = fused
        ? fusedExperts(m, rows, routing, {
          ffn,
          inward: "experts.gate_up_proj",
          outward: "experts.down_proj",
        })
        : experts(m, rows, routing);
      return add(
        routed,
        mlp(m, rows, { name: "shared_experts", ffn: sharedFfn }),
      );
    }),
  }, options);
}
