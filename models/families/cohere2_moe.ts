/**
 * Cohere2-MoE (Command A+, North Mini Code): attention and experts in parallel, on one norm. Most layers have a window,
 * and positions only there and in the first layers without experts.
 */

import { add, type Model } from "switchyard-moe";
import {
  attendHeads,
  booleanField,
  choiceField,
  type Config,
  decoderModel,
  type DecoderOptions,
  type DecoderScope,
  defineFamily,
  experts,
  groupedAxes,
  type GroupedDecoder,
  groupedFields,
  ignoreFields,
  integerField,
  layerTypes,
  mlp,
  type Part,
  positiveField,
  projectHeads,
  requireField,
  rotate,
  routeLayer,
  type RouterOptions,
  slidingLayers,
  sparseOrDense,
  textConfig,
  times,
  windowField,
  WRAPPED,
} from "switchyard-moe/models";

/** The family of `Cohere2MoeForCausalLM`, also as the text model of Command A+. */
export const family = defineFamily({
  architectures: [
    "Cohere2MoeForCausalLM",
    "Cohere2VisionForConditionalGeneration",
  ],
  config: readConfig,
  build,
  unused: ({ wrapped }) =>
    wrapped ? ["model.vision_tower.", "model.multi_modal_projector."] : [],
});

/** A Cohere2-MoE configuration. */
interface Cohere2MoeConfig extends GroupedDecoder {
  /** The text model of a model of text and images. */
  readonly wrapped: boolean;
  /** Norms subtract the mean. */
  readonly subtractMean: boolean;
  readonly router: RouterOptions;
  /** Hidden size of all shared experts together, 0 for none, and of a layer without experts. */
  readonly sharedFfn: number;
  readonly denseFfn: number;
  /** Factor of the sum of experts and shared experts. */
  readonly average: number;
  readonly logitScale: number;
}

/** Reads a config.json. Missing fields have transformers' defaults. */
function readConfig(document: Config): Cohere2MoeConfig {
  const { config, wrapped } = textConfig(document);
  // Command A Vision has a dense text model.
  if (wrapped) requireField(config, "model_type", "cohere2_moe");
  for (
    const [key, value] of Object.entries({
      attention_bias: false,
      position_embedding_type: "rope_gptj",
      rotary_pct: 1,
      use_gated_activation: true,
      use_parallel_block: true,
      use_qk_norm: false,
    })
  ) requireField(config, key, value);
  // The epsilon of the norm that the model does not have is without effect.
  ignoreFields(config, ["rms_norm_eps", "layer_norm_eps"]);
  const subtractMean = (config["rms_norm_eps"] ?? undefined) === undefined;
  const fields = groupedFields(config, {
    layers: 40,
    vocabulary: 256000,
    embed: 8192,
    heads: 64,
    headDim: 128,
    experts: 8,
    expertsPerToken: 2,
    ffn: 22528,
    epsilon: 1e-5,
    theta: 10000,
    interleaved: true,
    maxPositions: 8192,
    tied: true,
  }, {
    experts: "num_experts",
    ffn: "intermediate_size",
    epsilon: subtractMean ? "layer_norm_eps" : "rms_norm_eps",
  });
  const field = (key: string, value: number, min = 1) =>
    integerField(config, key, { default: value, min });
  const first = field("first_k_dense_replace", 0, 0);
  const every = field("sliding_window_pattern", 4);
  const prefixEvery = field("prefix_dense_sliding_window_pattern", 1);
  const window = windowField(config, { default: 4096 });
  const feedOf = layerTypes(
    config,
    ["dense", "sparse"],
    (layer) => layer < first ? "dense" : "sparse",
    "mlp_layer_types",
  );
  const slides = slidingLayers(
    config,
    (layer) =>
      layer < first
        ? (layer + 1) % prefixEvery !== 0
        : (layer - first + 1) % every !== 0,
  );
  const normalize = booleanField(config, "norm_topk_prob", { default: true });
  const score = choiceField(config, "expert_selection_fn", [
    "softmax",
    "sigmoid",
  ]);
  const combination = choiceField(
    config,
    "shared_expert_combination_strategy",
    ["average", "sum"],
  );
  const shared = field("num_shared_experts", 0, 0);
  return {
    ...fields,
    wrapped,
    subtractMean,
    kindOf: (layer) => {
      const isDense = feedOf(layer) === "dense";
      return {
        experts: !isDense,
        window: slides(layer) ? window : undefined,
        rotated: slides(layer) || isDense && prefixEvery === 1,
      };
    },
    router: {
      topK: fields.expertsPerToken,
      ...score === "softmax"
        ? { preset: "graniteMoe" }
        : { score, normalize: normalize ? "chosen" : "none" },
    },
    sharedFfn: shared * fields.ffn,
    denseFfn: field("prefix_dense_intermediate_size", fields.ffn),
    average: shared > 0 && combination === "average" ? 0.5 : 1,
    logitScale: positiveField(config, "logit_scale", { default: 0.0625 }),
  };
}

/** Builds the model of a configuration. */
function build(config: Cohere2MoeConfig, options: DecoderOptions): Model {
  const { logitScale, rotary, subtractMean, wrapped } = config;
  const feed = feedCohere(config);
  return decoderModel(config, {
    axes: groupedAxes(config),
    names: wrapped ? WRAPPED : {},
    multipliers: { embedding: 1, residual: 1, logits: logitScale },
    subtractMean,
    layer(scope, x, layer) {
      const m: DecoderScope = scope;
      const { rotated, window } = layer.kind;
      const rows = layer.norm(m, x, "input_layernorm.weight");
      const attended = layer.residual(
        x,
        () =>
          scope.block("self_attn", {}, (m) => {
            const heads = projectHeads(m, rows);
            const ready = rotated ? rotate(heads, rotary, layer) : heads;
            return attendHeads(m, ready, layer, { window });
          }),
      );
      return layer.residual(
        layer.pick(m, attended),
        () => feed(m, layer.pick(m, rows), layer),
      );
    },
  }, options);
}

/** The block `mlp`. */
function feedCohere(config: Cohere2MoeConfig): Part {
  const { average, router, sharedFfn } = config;
  return sparseOrDense(config, (m, rows, layer) => {
    const chosen = experts(m, rows, routeLayer(m, rows, layer, router));
    if (sharedFfn === 0) return chosen;
    const shared = mlp(m, rows, { name: "shared_experts", ffn: sharedFfn });
    return times(add(chosen, shared), average);
  });
}
