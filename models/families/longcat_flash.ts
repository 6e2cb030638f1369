/**
 * LongCat-Flash: each layer has two latent attention blocks, two dense blocks, and experts whose result is added at its
 * end (shortcut-connected MoE). Zero-computation experts return their input.
 */

import {
  add,
  cast,
  clamp,
  dot,
  type Model,
  mul,
  neg,
  route,
  slice,
  sub,
  sum,
} from "switchyard-moe";
import {
  attendLatent,
  type Config,
  type DecoderFields,
  decoderFields,
  decoderModel,
  type DecoderOptions,
  type DecoderScope,
  defineFamily,
  experts,
  ignoreFields,
  integerField,
  latentAxes,
  type LatentFields,
  latentFields,
  type Layer,
  mlp,
  positiveField,
  requireField,
  type Rows,
} from "switchyard-moe/models";

/** The family of `LongcatFlashForCausalLM`. */
export const family = defineFamily({
  architectures: ["LongcatFlashForCausalLM"],
  config: readConfig,
  build,
  unused: ({ layers, experts, zeroExperts }) => [
    "model.mtp.",
    // Transformers writes some tensors of zero-computation experts.
    ...Array.from({ length: layers * zeroExperts }, (_, i) => {
      const [layer, zero] = [Math.floor(i / zeroExperts), i % zeroExperts];
      return `model.layers.${layer}.mlp.experts.${experts + zero}.`;
    }),
  ],
});

/** A LongCat-Flash configuration. */
interface LongcatFlashConfig extends DecoderFields, LatentFields {
  readonly zeroExperts: number;
  readonly denseFfn: number;
  readonly routedScale: number;
}

/** Reads a config.json of `LongcatFlashForCausalLM`. Missing fields have transformers' defaults. */
function readConfig(config: Config): LongcatFlashConfig {
  requireField(config, "zero_expert_type", "identity");
  requireField(config, "router_bias", false);
  requireField(config, "norm_topk_prob", false);
  requireField(config, "mla_scale_q_lora", true);
  requireField(config, "mla_scale_kv_lora", true);
  // One layer here counts as two in transformers.
  ignoreFields(config, [
    "head_dim",
    "num_key_value_heads",
    "qk_head_dim",
    "num_hidden_layers",
  ]);
  const field = (key: string, value: number, min = 1) =>
    integerField(config, key, { default: value, min });
  const layers = field("num_layers", 28);
  const fields = decoderFields({ ...config, num_hidden_layers: layers }, {
    layers,
    vocabulary: 131072,
    embed: 6144,
    experts: 512,
    expertsPerToken: 12,
    ffn: 2048,
    epsilon: 1e-5,
    maxPositions: 131072,
  }, {
    experts: "n_routed_experts",
    expertsPerToken: "moe_topk",
    ffn: "expert_ffn_hidden_size",
  });
  const latent = latentFields(config, {
    heads: 64,
    interleaved: true,
    theta: 1e7,
  });
  const { queryLatent = fields.embed } = latent;
  return {
    ...latent,
    ...fields,
    queryScale: Math.sqrt(fields.embed / queryLatent),
    latentScale: Math.sqrt(fields.embed / latent.latent),
    zeroExperts: field("zero_expert_num", 256, 0),
    denseFfn: field("ffn_hidden_size", 12288),
    routedScale: positiveField(config, "routed_scaling_factor", { default: 6 }),
  };
}

/** Builds the model of a configuration. */
function build(config: LongcatFlashConfig, options: DecoderOptions): Model {
  const { denseFfn } = config;
  return decoderModel(config, {
    // Outputs of routers.
    axes: {
      ...latentAxes(config),
      output: config.experts + config.zeroExperts,
    },
    predictor: {
      kind: { experts: false },
      layer: "model.mtp.layers.0",
      tokenNorm: "model.mtp.layers.0.enorm.m.weight",
      hiddenNorm: "model.mtp.layers.0.hnorm.m.weight",
      join: "model.mtp.layers.0.eh_proj.weight",
      norm: "model.mtp.norm.weight",
    },
    layer(scope, x, layer) {
      const m: DecoderScope = scope;
      const attend = (x: Rows, number = "") =>
        layer.residual(x, (rows) =>
          attendLatent(
            scope,
            layer.norm(m, rows, `input_layernorm${number}.weight`),
            layer,
            { ...config, block: `self_attn${number}` },
          ));
      // The layer that predicts a further token has one block of each kind.
      if (!layer.kind.experts) {
        return layer.residual(
          layer.pick(m, attend(x)),
          (rows) =>
            mlp(m, layer.norm(m, rows, "post_attention_layernorm.weight"), {
              name: "transformer_layer.mlp",
              ffn: denseFfn,
            }),
        );
      }
      const feed = (rows: Rows, i: number) =>
        mlp(m, rows, { name: `mlps.${i}`, ffn: denseFfn });
      const first = attend(x, ".0");
      const seen = layer.norm(m, first, "post_attention_layernorm.0.weight");
      const routed = chooseAndFeed(scope, seen, layer, config);
      const dense = layer.residual(first, () => feed(seen, 0));
      const second = layer.pick(m, attend(dense, ".1"));
      const done = layer.residual(
        second,
        (rows) =>
          feed(layer.norm(m, rows, "post_attention_layernorm.1.weight"), 1),
      );
      return add(done, layer.pick(m, routed));
    },
  }, options);
}

/** The block `mlp`: experts, and rows times the weights of zero-computation experts. */
function chooseAndFeed(
  m: DecoderScope<"output">,
  rows: Rows,
  layer: Layer,
  { ffn, experts: count, expertsPerToken: topK, routedScale }:
    LongcatFlashConfig,
): Rows {
  return m.block("mlp", { ffn }, (m) => {
    const logits = dot(
      rows,
      m.param("router.classifier.weight", "output embed"),
      "embed",
    );
    const all = route(logits, {
      over: "output",
      topK,
      score: "softmax",
      bias: m.param("router.e_score_correction_bias", "output"),
      scale: routedScale,
      ...layer.choices ? { choices: layer.choices() } : {},
    });
    layer.routed({ logits, routing: all } as never);
    const chosen = cast(all.index, "f32");
    // 1 for experts that compute and 0 for the others, which are replaced by the first expert with weight 0.
    const computes = clamp(add(neg(chosen), count), 0, 1);
    const weights = mul(all.weight, computes);
    const routing = route(slice(logits, "output", 0, "expert"), {
      over: "expert",
      topK,
      choices: cast(mul(chosen, computes), "i32"),
      weights,
    });
    const zero = sum(sub(all.weight, weights), "choice");
    return add(experts(m, rows, routing), mul(rows, zero));
  });
}
