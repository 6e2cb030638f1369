/**
 * Kimi-K3: Kimi-Linear with attention residuals instead of a residual stream, experts between two projections, limited
 * activations, and gates on both kinds of attention.
 */

import {
  add,
  combine,
  dispatch,
  div,
  dot,
  type Model,
  mul,
  rmsNorm,
  sigmoid,
  tanh,
  type Tensor,
} from "switchyard-moe";
import {
  addStart,
  attendLatent,
  type Config,
  decoderModel,
  type DecoderNames,
  type DecoderOptions,
  type DecoderScope,
  defineFamily,
  type Glu,
  ignoreFields,
  integerField,
  kimiDeltaAttention,
  type LatentAxes,
  latentAxes,
  type Layer,
  mixStarts,
  mlp,
  NUMBERED,
  pickStarts,
  positiveField,
  requireField,
  residualAxes,
  type ResidualAxis,
  routeShared,
  type Rows,
  type Starts,
  textConfig,
  WRAPPED_CAUSAL,
} from "switchyard-moe/models";
import { kimiFields, type KimiLinearConfig } from "./kimi_linear.ts";

/** The family of `KimiK3ForConditionalGeneration`, text part. */
export const family = defineFamily({
  architectures: ["KimiK3ForConditionalGeneration"],
  config: readConfig,
  build,
  unused: ({ names }) => [
    "vision_tower.",
    "mm_projector.",
    // Before the first layer, no block has started.
    `${names.layer}.0.self_attention_res_`,
  ],
});

/** A Kimi-K3 configuration. */
interface KimiK3Config extends KimiLinearConfig {
  /** Size of the rows of experts. */
  readonly routed: number;
  /** Layers of a block of attention residuals. */
  readonly blockLayers: number;
  /** Limits of gates and of their factors. */
  readonly limits: { readonly gate: number; readonly up: number };
  readonly names: KimiK3Names;
}

/** Names of tensors. `model` is the start of those outside of layers. */
type KimiK3Names = Partial<DecoderNames> & {
  readonly layer: string;
  readonly model: string;
};

/** Names in a model of text and images, and in GGUF files. */
const IN_MODEL: KimiK3Names = {
  ...WRAPPED_CAUSAL,
  model: "language_model.model",
};
const ALONE: KimiK3Names = { layer: "model.layers", model: "model" };

/** Reads a config.json. Missing fields have the values of Kimi-K3. */
function readConfig(document: Config): KimiK3Config {
  ignoreFields(document, ["ignore_index", "media_placeholder_token_id"]);
  const { config, wrapped } = textConfig(document);
  requireField(config, "topk_method", "noaux_tc");
  requireField(config, "mla_use_output_gate", true);
  requireField(config, "latent_moe_use_norm", true);
  const size = (key: string, value: number) =>
    integerField(config, key, { default: value });
  const limit = (key: string, value: number) =>
    positiveField(config, key, { default: value });
  const blockLayers = size("attn_res_block_size", 12);
  const fields = kimiFields(config, {
    activation: "situ",
    layers: 93,
    vocabulary: 163840,
    embed: 7168,
    heads: 96,
    queryLatent: 1536,
    denseFfn: 33792,
    ffn: 3072,
    experts: 896,
    sharedExperts: 2,
    expertsPerToken: 16,
    firstSparse: 1,
    routedScale: 1,
    wholeGate: true,
    decays: "padded",
    decayLimit: -5,
    maxPositions: 1048576,
    positions: "max_position_embeddings",
    epsilon: 1e-5,
  });
  return {
    ...fields,
    // Layers read the starts of as many blocks as there are so far.
    kindOf: (layer) => ({
      ...fields.kindOf(layer),
      starts: Math.floor(layer / blockLayers) + 1,
    }),
    blockLayers,
    routed: size("routed_expert_hidden_size", 3584),
    limits: {
      gate: limit("activation_situ_beta", 4),
      up: limit("activation_situ_linear_beta", 25),
    },
    names: wrapped ? IN_MODEL : ALONE,
  };
}

/** Builds the model of a configuration. */
function build(config: KimiK3Config, options: DecoderOptions): Model {
  const { layers, embed, blockLayers, epsilon, names } = config;
  return decoderModel(config, {
    axes: {
      ...latentAxes(config),
      ...residualAxes(Math.ceil(layers / blockLayers), embed),
    },
    names,
    begin(m) {
      let starts: Starts | undefined;
      const mix = (m: Scope, rows: Rows, name: string) =>
        starts ? mixStarts(m, starts, rows, { name, epsilon }) : rows;
      return {
        layer(m, stream, layer) {
          const begins = layer.index % blockLayers === 0;
          const read = mix(m, stream, "self_attention_res");
          if (begins) starts = addStart(starts, stream);
          const ready = layer.norm(m, read, "input_layernorm.weight");
          const made = attend(m, ready, layer, config);
          const rows = layer.pick(m, begins ? made : add(stream, made));
          starts &&= pickStarts(m, starts, layer);
          const mixed = mix(m, rows, "mlp_res");
          const gain = "post_attention_layernorm.weight";
          const normed = layer.norm(m, mixed, gain);
          return add(rows, feed(m, normed, layer, config));
        },
        end: (rows) => mix(m, rows, `${names.model}.output_attn_res`),
      };
    },
  }, options);
}

type Scope = DecoderScope<keyof LatentAxes | ResidualAxis>;

function attend(
  m: Scope,
  rows: Rows,
  layer: Layer,
  config: KimiK3Config,
): Rows {
  return layer.kind.mixer === "delta"
    ? kimiDeltaAttention(m, rows, layer, config)
    : attendLatent(m, rows, layer, {
      ...config,
      rotated: false,
      gate: { name: "g_proj", of: "values" },
    });
}

/** Experts between two projections, and shared experts with the rows of the model; or a dense block. */
function feed(m: Scope, rows: Rows, layer: Layer, config: KimiK3Config): Rows {
  const { ffn, sharedFfn, denseFfn, routed, epsilon } = config;
  const glu = limited(config);
  if (!layer.kind.experts) {
    return mlp(m, rows, { name: "mlp", ffn: denseFfn, glu });
  }
  return m.block("block_sparse_moe", { ffn, routed }, (m) => {
    const routing = routeShared(m, rows, layer, config);
    const down = m.param("routed_expert_down_proj.weight", "routed embed");
    const sent = dispatch(dot(rows, down, "embed"), routing);
    const hidden = glu(
      dot(sent, m.param(NUMBERED.gate, "expert ffn routed"), "routed"),
      dot(sent, m.param(NUMBERED.up, "expert ffn routed"), "routed"),
    );
    const out = m.param(NUMBERED.down, "expert routed ffn");
    const made = combine(dot(hidden, out, "ffn"), routing);
    const gain = m.param("routed_expert_norm.weight", "routed");
    const normed = rmsNorm(made, gain, "routed", { epsilon });
    const up = m.param("routed_expert_up_proj.weight", "embed routed");
    return add(
      dot(normed, up, "routed"),
      mlp(m, rows, { name: "shared_experts", ffn: sharedFfn, glu }),
    );
  });
}

/** SiTU: a · tanh(gate / a) · sigmoid(gate) · b · tanh(up / b), with the limits a and b. */
function limited({ limits }: KimiK3Config): Glu {
  const bounded = <A extends string>(x: Tensor<A, "f32">, limit: number) =>
    mul<A, "f32">(tanh(div<A, "f32">(x, limit)), limit);
  return (gate, up) =>
    mul(
      mul(bounded(gate, limits.gate), sigmoid(gate)),
      bounded(up, limits.up),
    );
}
