/**
 * Nemotron-H: each layer is one block of Mamba-2, of attention without positions, of experts, or of a feed-forward
 * network. The activation is the squared ReLU.
 */

import {
  add,
  combine,
  dispatch,
  dot,
  type Model,
  mul,
  relu,
  type Tensor,
} from "switchyard-moe";
import {
  anyField,
  attendHeads,
  checkMamba,
  type Config,
  decoderModel,
  type DecoderOptions,
  type DecoderScope,
  defineFamily,
  fieldError,
  groupedAxes,
  type GroupedDecoder,
  groupedFields,
  ignoreFields,
  integerField,
  type Layer,
  type Mamba,
  mamba,
  optionalIntegerField,
  projectHeads,
  requireField,
  routeShared,
  type Rows,
  type SharedExperts,
  sharedExperts,
} from "switchyard-moe/models";

/** The family of `NemotronHForCausalLM`. */
export const family = defineFamily({
  architectures: ["NemotronHForCausalLM"],
  config: readConfig,
  build,
  unused: () => ["mtp."],
});

/** A Nemotron-H configuration. */
interface NemotronHConfig extends GroupedDecoder, Mamba, SharedExperts {
  /** Size of the rows of experts, between two projections. Undefined: experts have the rows of the model. */
  readonly latent: number | undefined;
  /** The name of the embedding. */
  readonly embedding: string;
}

/** The names of layer kinds, including older ones and those of `hybrid_override_pattern`. */
const KINDS: ReadonlyMap<unknown, string> = new Map([
  ["M", "mamba"],
  ["*", "attention"],
  ["E", "moe"],
  ["-", "mlp"],
  ["mamba", "mamba"],
  ["linear_attention", "mamba"],
  ["attention", "attention"],
  ["full_attention", "attention"],
  ["moe", "moe"],
  ["mlp", "mlp"],
]);

/**
 * Reads a config.json of `NemotronHForCausalLM`. Missing fields have transformers' defaults; the kinds of layers are
 * required.
 */
function readConfig(config: Config): NemotronHConfig {
  requireField(config, "attention_bias", false);
  requireField(config, "mlp_bias", false);
  requireField(config, "use_bias", false);
  requireField(config, "mlp_hidden_act", "relu2");
  requireField(config, "mamba_hidden_act", "silu");
  requireField(config, "sliding_window", null);
  // Kernels have other chunks, and heads have their own sizes.
  ignoreFields(config, ["chunk_size", "expand", "norm_eps"]);
  const field = (key: string, value: number, min = 1) =>
    integerField(config, key, { default: value, min });
  const kinds = readKinds(config);
  const fields = groupedFields({ ...config, num_hidden_layers: kinds.length }, {
    layers: kinds.length,
    vocabulary: 131072,
    embed: 4096,
    heads: 32,
    kvHeads: 8,
    headDim: 128,
    experts: 8,
    expertsPerToken: 2,
    ffn: 7688,
    epsilon: 1e-5,
    theta: 10000,
    maxPositions: 4096,
  }, {
    experts: "n_routed_experts",
    ffn: "moe_intermediate_size",
    epsilon: "layer_norm_epsilon",
  });
  const sizes = {
    mambaHeads: field("mamba_num_heads", 128),
    mambaDim: field("mamba_head_dim", 64),
    groups: field("n_groups", 8),
    stateDim: field("ssm_state_size", 128),
    taps: field("conv_kernel", 4, 2),
  };
  const sharedFfn = field("moe_shared_expert_intermediate_size", 7688);
  return {
    ...fields,
    ...checkMamba(config, sizes, {
      bias: "use_conv_bias",
      heads: "mamba_num_heads",
      groups: "n_groups",
    }),
    ...sharedExperts(config, sharedFfn, {
      denseFfn: 21504,
      sharedExperts: 1,
      firstSparse: 0,
      routedScale: 1,
      normalize: true,
    }),
    latent: optionalIntegerField(config, "moe_latent_size"),
    // Transformers 5 writes a name that differs from published checkpoints.
    embedding: /^5\./.test(String(anyField(config, "transformers_version")))
      ? "backbone.embedding.weight"
      : "backbone.embeddings.weight",
    kindOf: (layer) => ({
      experts: kinds[layer] === "moe",
      mixer: kinds[layer]!,
    }),
  };
}

/** Reads the kinds of all layers from a list of names, or from the pattern of an older file. */
function readKinds(config: Config): readonly string[] {
  const listKey = "layers_block_type", patternKey = "hybrid_override_pattern";
  const list: unknown = anyField(config, listKey);
  const pattern: unknown = anyField(config, patternKey);
  const names: unknown = list ??
    (typeof pattern === "string" ? [...pattern] : undefined);
  const kinds = Array.isArray(names)
    ? names.map((name: unknown) => KINDS.get(name))
    : [];
  if (kinds.length > 0 && kinds.every((kind) => kind !== undefined)) {
    return kinds;
  }
  const wanted =
    "of 'M', '*', 'E' and '-', or a list of 'mamba', 'attention', 'moe' and 'mlp'";
  const isPattern = (list ?? undefined) === undefined && pattern !== undefined;
  throw isPattern
    ? fieldError(patternKey, pattern, wanted)
    : fieldError(listKey, list, wanted);
}

/** Builds the model of a configuration. */
function build(config: NemotronHConfig, options: DecoderOptions): Model {
  const { epsilon, denseFfn } = config;
  return decoderModel(config, {
    axes: groupedAxes(config),
    names: {
      embedding: config.embedding,
      layer: "backbone.layers",
      norm: "backbone.norm_f.weight",
    },
    layer(scope, x, layer) {
      const m: DecoderScope = scope;
      const { mixer } = layer.kind;
      const normed = (rows: Rows) => layer.norm(m, rows, "norm.weight");
      if (mixer === "mamba") {
        const name = "mixer";
        const made = layer.residual(x, (rows) =>
          mamba(m, normed(rows), {
            name,
            layer,
            c: config,
            epsilon,
            groupNorm: true,
          }));
        return layer.pick(m, made);
      }
      if (mixer === "attention") {
        const made = layer.residual(x, (rows) => {
          const ready = normed(rows);
          return scope.block(
            "mixer",
            {},
            (m) =>
              attendHeads(m, projectHeads(m, ready), layer, { block: "mixer" }),
          );
        });
        return layer.pick(m, made);
      }
      return layer.residual(layer.pick(m, x), (rows) => {
        const ready = normed(rows);
        if (mixer === "mlp") {
          return squared(m, ready, { name: "mixer", ffn: denseFfn });
        }
        return feed(m, ready, layer, config);
      });
    },
  }, options);
}

const UP = "experts.{expert}.up_proj.weight";
const DOWN = "experts.{expert}.down_proj.weight";

/** The block `mixer` of a layer with experts. The router and the shared expert have the rows of the model. */
function feed(
  m: DecoderScope,
  rows: Rows,
  layer: Layer,
  config: NemotronHConfig,
): Rows {
  const { ffn, sharedFfn, latent } = config;
  return m.block("mixer", { ffn, latent: latent ?? 1 }, (m) => {
    const routing = routeShared(m, rows, layer, config);
    const shared = squared(m, rows, { name: "shared_experts", ffn: sharedFfn });
    if (latent === undefined) {
      const up = m.param(UP, "expert ffn embed");
      const hidden = square(dot(dispatch(rows, routing), up, "embed"));
      const down = m.param(DOWN, "expert embed ffn");
      return add(combine(dot(hidden, down, "ffn"), routing), shared);
    }
    const inward = m.param("fc1_latent_proj.weight", "latent embed");
    const sent = dispatch(dot(rows, inward, "embed"), routing);
    const up = m.param(UP, "expert ffn latent");
    const hidden = square(dot(sent, up, "latent"));
    const down = m.param(DOWN, "expert latent ffn");
    const outward = m.param("fc2_latent_proj.weight", "embed latent");
    const routed = combine(dot(hidden, down, "ffn"), routing);
    return add(dot(routed, outward, "latent"), shared);
  });
}

/** The matrices `up_proj` and `down_proj` of a dense block. */
function squared(
  m: DecoderScope,
  rows: Rows,
  { name, ffn }: { readonly name: string; readonly ffn: number },
): Rows {
  return m.block(name, { ffn }, (m) => {
    const up = m.param("up_proj.weight", "ffn embed");
    const hidden = square(dot(rows, up, "embed"));
    return dot(hidden, m.param("down_proj.weight", "embed ffn"), "ffn");
  });
}

/** max(x, 0)² */
function square<A extends string>(x: Tensor<A, "f32">): Tensor<A, "f32"> {
  return mul(relu(x), relu(x)) as Tensor<A, "f32">;
}
