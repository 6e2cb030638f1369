/**
 * MiniMax-M3: grouped-query attention with norms per head, the activation of gpt-oss, and the experts of DeepSeek-V3. Its
 * sparse layers attend to blocks of keys that an indexer chooses (arXiv 2606.13392). They are built for contexts in which
 * every block is chosen.
 */

import { add, DataError, type Model, swigluOai } from "switchyard-moe";
import {
  anyField,
  attendHeads,
  choiceField,
  type Config,
  decoderModel,
  type DecoderOptions,
  defineFamily,
  experts,
  fieldError,
  type Glu,
  groupedAxes,
  type GroupedDecoder,
  groupedFields,
  ignoreFields,
  innerConfig,
  integerField,
  integersField,
  layersWhere,
  layerTypes,
  mlp,
  normHeads,
  NUMBERED,
  positiveField,
  projectHeads,
  requireField,
  rotate,
  routeLayer,
  textConfig,
  WRAPPED_CAUSAL,
} from "switchyard-moe/models";

/** The family of `MiniMaxM3SparseForConditionalGeneration`, text part, and of its text model alone. */
export const family = defineFamily({
  architectures: [
    "MiniMaxM3SparseForConditionalGeneration",
    "MiniMaxM3SparseForCausalLM",
  ],
  config: readConfig,
  build,
  unused: (config) => [
    "vision_tower.",
    "multi_modal_projector.",
    "patch_merge_mlp.",
    ...indexers(config),
  ],
});

/** A MiniMax-M3 configuration. */
interface MiniMaxM3Config extends GroupedDecoder {
  /** The text model is a part of a model of text and images. */
  readonly wrapped: boolean;
  /** Hidden size of the shared expert, and of a layer without experts. */
  readonly sharedFfn: number;
  readonly denseFfn: number;
  /** Limit and gain of the activation. */
  readonly limit: number;
  readonly alpha: number;
  /** Factor of expert weights. */
  readonly routedScale: number;
  /** Whether a layer has an indexer. */
  readonly isSparse: (layer: number) => boolean;
  /** Keys in the blocks that a token attends to. */
  readonly chosenKeys: number;
}

const SPARSE = "minimax_m3_sparse";

/** Reads a config.json. Missing fields have transformers' defaults. */
function readConfig(document: Config): MiniMaxM3Config {
  ignoreFields(document, [
    "projector_hidden_size",
    "img_token_compression_config",
  ]);
  const { config, wrapped } = textConfig(document);
  // The activation has gates, whatever the name.
  choiceField(config, "hidden_act", ["swigluoai", "silu"]);
  requireField(config, "attention_output_gate", false);
  requireField(config, "n_shared_experts", 1);
  requireField(config, "qk_norm_type", "per_head");
  requireField(config, "scoring_func", "sigmoid");
  requireField(config, "use_gemma_norm", true);
  requireField(config, "use_qk_norm", true);
  requireField(config, "use_routing_bias", true);
  ignoreFields(config, ["num_mtp_modules", "num_nextn_predict_layers"]);
  const field = (key: string, value: number) =>
    integerField(config, key, { default: value });
  const positive = (key: string, value: number) =>
    positiveField(config, key, { default: value });
  const sparse = flags(config, "moe_layer_freq");
  const feedOf = layerTypes(
    config,
    ["sparse", "dense"],
    (layer) => sparse(layer) ?? true ? "sparse" : "dense",
    "mlp_layer_types",
  );
  const blocks = blocksOf(config);
  const fields = groupedFields({ ...config, hidden_act: "silu" }, {
    layers: 60,
    vocabulary: 200064,
    embed: 6144,
    heads: 64,
    kvHeads: 4,
    headDim: 128,
    experts: 128,
    expertsPerToken: 4,
    ffn: 3072,
    epsilon: 1e-6,
    theta: 5e6,
    part: 0.5,
    maxPositions: 524288,
  }, { experts: "num_local_experts", ffn: "intermediate_size" });
  const { layers, maxPositions } = fields;
  return {
    ...fields,
    ...blocks,
    maxPositions: layersWhere(layers, blocks.isSparse).length > 0
      ? Math.min(maxPositions, blocks.chosenKeys)
      : maxPositions,
    wrapped,
    sharedFfn: field("shared_intermediate_size", 3072),
    denseFfn: field("dense_intermediate_size", 12288),
    limit: positive("swiglu_limit", 7),
    alpha: positive("swiglu_alpha", 1.702),
    routedScale: positive("routed_scaling_factor", 2),
    kindOf: (layer) => ({ experts: feedOf(layer) === "sparse" }),
  };
}

/** Returns the flag of each layer in a list of zeros and ones. Undefined: the list does not have the layer. */
function flags(
  config: Config,
  key: string,
): (layer: number) => boolean | undefined {
  const list = integersField(config, key) ?? [];
  if (list.some((flag) => flag !== 0 && flag !== 1)) {
    throw fieldError(key, list, "a list of zeros and ones");
  }
  return (layer) => list[layer] === undefined ? undefined : list[layer] === 1;
}

/** Fields of the indexer in `sparse_attention_config` that change no result while every block is chosen. */
const UNUSED = [
  "sparse_index_dim",
  "sparse_num_index_heads",
  "sparse_init_block",
  "sparse_local_block",
];

/** Reads which layers have an indexer, and how many keys it chooses. transformers 5 has other names than published files. */
function blocksOf(
  config: Config,
): Pick<MiniMaxM3Config, "isSparse" | "chosenKeys"> {
  const key = "sparse_attention_config";
  const inner = innerConfig(config, key) ?? {};
  requireField(inner, "use_sparse_attention", true);
  requireField(inner, "sparse_score_type", "max");
  ignoreFields(inner, UNUSED);
  ignoreFields(config, [
    "index_n_heads",
    "index_head_dim",
    "index_local_blocks",
  ]);
  const known = [
    ...UNUSED,
    "use_sparse_attention",
    "sparse_score_type",
    "sparse_attention_freq",
    "sparse_disable_index_value",
    "sparse_topk_blocks",
    "sparse_block_size",
  ];
  const unknown = Object.keys(inner).find((name) => !known.includes(name));
  if (unknown !== undefined) {
    throw fieldError(unknown, inner[unknown], `absent from '${key}'`);
  }
  const listed = flags(inner, "sparse_attention_freq");
  const withoutValues = flags(inner, "sparse_disable_index_value");
  const typeOf = layerTypes(
    config,
    ["full_attention", SPARSE],
    (layer) => listed(layer) ? SPARSE : "full_attention",
  );
  const isSparse = (layer: number) => typeOf(layer) === SPARSE;
  const layers = integerField(config, "num_hidden_layers", { default: 60 });
  for (let layer = 0; layer < layers; layer++) {
    if (!isSparse(layer) || withoutValues(layer) !== false) continue;
    throw fieldError(
      "sparse_disable_index_value",
      anyField(inner, "sparse_disable_index_value"),
      "1 in layers with an indexer, the only one built",
    );
  }
  const size = (published: string, name: string, value: number) =>
    integerField(inner, published, {
      default: integerField(config, name, { default: value }),
    });
  return {
    isSparse,
    chosenKeys: size("sparse_topk_blocks", "index_topk_blocks", 16) *
      size("sparse_block_size", "index_block_size", 128),
  };
}

/** Returns the prefixes of the tensors of indexers. */
function indexers({ layers, isSparse, wrapped }: MiniMaxM3Config): string[] {
  const start = wrapped ? WRAPPED_CAUSAL.layer : "model.layers";
  return layersWhere(layers, isSparse)
    .map((layer) => `${start}.${layer}.self_attn.index_`);
}

/** Builds the model of a configuration. Throws DataError for a context in which indexers choose keys. */
function build(config: MiniMaxM3Config, options: DecoderOptions): Model {
  requireAllBlocks(config, options);
  const { ffn, sharedFfn, denseFfn, limit, alpha } = config;
  const glu: Glu = (gate, up) =>
    swigluOai(gate, up as typeof gate, { limit, alpha }) as typeof gate;
  return decoderModel(config, {
    axes: groupedAxes(config),
    centred: true,
    ...config.wrapped ? { names: WRAPPED_CAUSAL } : {},
    attend: (m, rows, layer) =>
      m.block("self_attn", {}, (m) => {
        const heads = normHeads(m, projectHeads(m, rows), {
          epsilon: config.epsilon,
          centred: true,
        });
        return attendHeads(m, rotate(heads, config.rotary, layer), layer);
      }),
    feed(m, rows, layer) {
      if (!layer.kind.experts) {
        return mlp(m, rows, { name: "mlp", ffn: denseFfn, glu });
      }
      return m.block("block_sparse_moe", { ffn }, (m) => {
        const routing = routeLayer(m, rows, layer, {
          topK: config.expertsPerToken,
          score: "sigmoid",
          bias: m.param("e_score_correction_bias", "expert"),
          normalize: "chosen",
          scale: config.routedScale,
        });
        return add(
          experts(m, rows, routing, { names: NUMBERED, glu }),
          mlp(m, rows, { name: "shared_experts", ffn: sharedFfn, glu }),
        );
      });
    },
    predictor: {
      missing:
        "published checkpoints of MiniMax-M3 do not have the layers that their config.json declares",
    },
  }, options);
}

/** Rejects a context with more keys than the indexers of sparse layers choose. */
function requireAllBlocks(
  { layers, isSparse, chosenKeys }: MiniMaxM3Config,
  { maxContext }: DecoderOptions,
): void {
  const sparse = layersWhere(layers, isSparse);
  if (sparse.length === 0 || maxContext <= chosenKeys) return;
  throw new DataError(
    `Cannot build MiniMax-M3 for a context of ${maxContext}: its indexers choose ${chosenKeys} keys, and a choice among more keys is not built. Use a context of at most ${chosenKeys}`,
  );
}
