/**
 * Trinity (AFMoE): norms before and after every block, a gate on the result of attention, a window in most layers and
 * positions only in these, and the experts of DeepSeek-V3.
 */

import { dot, type Model, split } from "switchyard-moe";
import {
  attendHeads,
  booleanField,
  type Config,
  decoderModel,
  type DecoderOptions,
  type DecoderScope,
  defineFamily,
  feedShared,
  type GroupedAxes,
  groupedAxes,
  type GroupedDecoder,
  groupedFields,
  ignoreFields,
  integerField,
  type Layer,
  normHeads,
  projectHeads,
  requireField,
  rotate,
  type Rows,
  type SharedExperts,
  sharedExperts,
  slidingLayers,
  windowField,
} from "switchyard-moe/models";

/** The family of `AfmoeForCausalLM`. */
export const family = defineFamily({
  architectures: ["AfmoeForCausalLM"],
  config: readConfig,
  build,
});

/** An AFMoE configuration. */
interface AfmoeConfig extends GroupedDecoder, SharedExperts {
  /** Embeddings are multiplied by the square root of their length. */
  readonly scaled: boolean;
}

/** Reads a config.json of `AfmoeForCausalLM`. Missing fields have transformers' defaults. */
function readConfig(config: Config): AfmoeConfig {
  requireField(config, "attention_bias", false);
  requireField(config, "score_func", "sigmoid");
  requireField(config, "route_norm", true);
  requireField(config, "num_expert_groups", 1);
  ignoreFields(config, [
    "num_limited_groups",
    "load_balance_coeff",
    "use_grouped_mm",
  ]);
  const fields = groupedFields(config, {
    layers: 32,
    vocabulary: 200192,
    embed: 2048,
    heads: 16,
    headDim: 128,
    experts: 64,
    expertsPerToken: 6,
    ffn: 1408,
    epsilon: 1e-5,
    theta: 10000,
    maxPositions: 16384,
  }, { experts: "num_experts", ffn: "moe_intermediate_size" });
  const shared = sharedExperts(config, fields.ffn, {
    denseFfn: 6144,
    sharedExperts: 2,
    firstSparse: 1,
    routedScale: 1,
    normalize: true,
  }, {
    sharedExperts: "num_shared_experts",
    firstSparse: "num_dense_layers",
    routedScale: "route_scale",
  });
  const window = windowField(config, { default: 1024 });
  const every = integerField(config, "global_attn_every_n_layers", {
    default: 4,
  });
  const slides = slidingLayers(config, (layer) => (layer + 1) % every !== 0);
  return {
    ...fields,
    ...shared,
    kindOf: (layer) => ({
      ...shared.kindOf(layer),
      window: slides(layer) ? window : undefined,
      rotated: slides(layer),
    }),
    scaled: booleanField(config, "mup_enabled", { default: false }),
  };
}

/** Builds the model of a configuration. */
function build(config: AfmoeConfig, options: DecoderOptions): Model {
  const feed = feedShared(config, {
    router: "router.gate",
    bias: "expert_bias",
  });
  return decoderModel(config, {
    axes: groupedAxes(config),
    multipliers: {
      embedding: config.scaled ? Math.sqrt(config.embed) : 1,
      residual: 1,
      logits: 1,
    },
    layer(scope, x, layer) {
      const m: DecoderScope = scope;
      const norm = (rows: Rows, name: string) =>
        layer.norm(m, rows, `${name}.weight`);
      const attended = layer.residual(x, (rows) => {
        const y = attend(scope, norm(rows, "input_layernorm"), layer, config);
        return norm(y, "post_attention_layernorm");
      });
      return layer.residual(layer.pick(m, attended), (rows) => {
        const y = feed(m, norm(rows, "pre_mlp_layernorm"), layer);
        return norm(y, "post_mlp_layernorm");
      });
    },
  }, options);
}

function attend(
  m: DecoderScope<keyof GroupedAxes>,
  rows: Rows,
  layer: Layer,
  config: AfmoeConfig,
): Rows {
  const { rotated, window } = layer.kind;
  return m.block("self_attn", {}, (m) => {
    const heads = normHeads(m, projectHeads(m, rows), config);
    const ready = rotated ? rotate(heads, config.rotary, layer) : heads;
    const gate = dot(rows, m.param("gate_proj.weight", "query embed"), "embed");
    return attendHeads(m, ready, layer, {
      window,
      gate: split(gate, "query", "head headDim"),
    });
  });
}
