/**
 * Hunyuan-MoE: queries and keys normalized after rotation, a frequency base that `alpha` raises, and a shared expert.
 */

import { add, type Model } from "switchyard-moe";
import {
  attendHeads,
  type Config,
  decoderModel,
  type DecoderOptions,
  defineFamily,
  experts,
  fieldError,
  groupedAxes,
  type GroupedDecoder,
  groupedFields,
  mlp,
  normHeads,
  optionalField,
  projectHeads,
  readRotary,
  requireField,
  ropeScaling,
  rotate,
  routeLayer,
} from "switchyard-moe/models";

/** The family of `HunYuanMoEV1ForCausalLM`. */
export const family = defineFamily({
  architectures: ["HunYuanMoEV1ForCausalLM"],
  config: readConfig,
  build,
});

/** Reads a config.json of `HunYuanMoEV1ForCausalLM`. Missing fields have transformers' defaults. */
function readConfig(config: Config): GroupedDecoder {
  requireField(config, "attention_bias", false);
  requireField(config, "use_qk_norm", true);
  requireField(config, "use_cla", false);
  requireField(config, "use_mixed_mlp_moe", true);
  requireField(ofAll(config, "num_shared_expert"), "num_shared_expert", 1);
  const { rope_scaling: _, rope_parameters: __, ...plain } = config;
  const defaults = {
    layers: 32,
    vocabulary: 290943,
    embed: 4096,
    heads: 32,
    experts: 1,
    expertsPerToken: 1,
    ffn: 11008,
    epsilon: 1e-5,
    theta: 10000,
    maxPositions: 2048,
  };
  const names = {
    experts: "num_experts",
    expertsPerToken: "moe_topk",
    ffn: "intermediate_size",
  };
  const fields = groupedFields(ofAll(plain, "moe_topk"), defaults, names);
  const { headDim: dim } = fields;
  const { type, rope_type = type, alpha, ...scaling } = ropeScaling(config);
  const raise = optionalField({ alpha }, "alpha");
  if (rope_type !== "dynamic" || raise === undefined) {
    return { ...fields, rotary: readRotary(config, { ...defaults, dim }) };
  }
  requireField(scaling, "factor", 1);
  const given = optionalField(scaling, "rope_theta") ??
    optionalField(config, "rope_theta") ?? defaults.theta;
  const theta = given * raise ** (dim / (dim - 2));
  const rotary = readRotary({ rope_theta: theta }, { dim, theta });
  return { ...fields, rotary };
}

/** Published files list some values per layer. They are accepted if all are equal. */
function ofAll(config: Config, key: string): Config {
  const values: unknown = config[key];
  if (!Array.isArray(values)) return config;
  const [first] = values;
  if (values.length > 0 && values.every((value) => value === first)) {
    return { ...config, [key]: first };
  }
  throw fieldError(key, values, "the same of all layers, the only one built");
}

/** Builds the model of a configuration. */
function build(
  config: GroupedDecoder,
  options: DecoderOptions,
): Model {
  const { ffn, epsilon, rotary } = config;
  return decoderModel(config, {
    axes: groupedAxes(config),
    attend: (m, rows, layer) =>
      m.block("self_attn", {}, (m) => {
        const rotated = rotate(projectHeads(m, rows), rotary, layer);
        const names = ["query_layernorm", "key_layernorm"] as const;
        return attendHeads(m, normHeads(m, rotated, { epsilon, names }), layer);
      }),
    feed: (m, rows, layer) =>
      m.block("mlp", { ffn }, (m) => {
        const routing = routeLayer(m, rows, layer, {
          router: "gate.wg",
          topK: config.expertsPerToken,
          preset: "mixtral",
        });
        return add(
          experts(m, rows, routing),
          mlp(m, rows, { name: "shared_mlp", ffn }),
        );
      }),
  }, options);
}
