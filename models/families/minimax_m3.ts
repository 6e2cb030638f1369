/**
 * MiniMax-M3: grouped-query attention with norms per head, the activation of gpt-oss, and the experts of DeepSeek-V3.
 * Its sparse layers attend to blocks of keys that an indexer chooses for each key head (arXiv 2606.13392).
 */

import {
  add,
  dot,
  type Model,
  rmsNorm,
  rope,
  selectBlocks,
  split,
  swigluOai,
  type Tensor,
} from "switchyard-moe";
import {
  anyField,
  attendHeads,
  choiceField,
  type Config,
  decoderModel,
  type DecoderOptions,
  type DecoderScope,
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
  type Layer,
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
  type Rows,
  textConfig,
  WRAPPED_CAUSAL,
} from "switchyard-moe/models";

/**
 * The family of `MiniMaxM3SparseForConditionalGeneration`, text part, of its other name, and of its text model alone.
 */
export const family = defineFamily({
  architectures: [
    "MiniMaxM3SparseForConditionalGeneration",
    "MiniMaxM3VLForConditionalGeneration",
    "MiniMaxM3SparseForCausalLM",
  ],
  config: readConfig,
  build,
  unused: () => ["vision_tower.", "multi_modal_projector.", "patch_merge_mlp."],
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
  readonly indexer: Indexer;
}

/** The choice of blocks in sparse layers: `blocks` of `size` keys, among them always some first and last ones. */
interface Indexer {
  readonly dim: number;
  readonly size: number;
  readonly blocks: number;
  readonly first: number;
  readonly local: number;
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
  const { mixerOf, ...indexer } = indexerOf(config, fields);
  return {
    ...fields,
    indexer,
    wrapped,
    sharedFfn: field("shared_intermediate_size", 3072),
    denseFfn: field("dense_intermediate_size", 12288),
    limit: positive("swiglu_limit", 7),
    alpha: positive("swiglu_alpha", 1.702),
    routedScale: positive("routed_scaling_factor", 2),
    kindOf: (layer) => ({
      experts: feedOf(layer) === "sparse",
      mixer: mixerOf(layer),
    }),
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

/** Fields of `sparse_attention_config`. */
const FIELDS = [
  "use_sparse_attention",
  "sparse_score_type",
  "sparse_attention_freq",
  "sparse_disable_index_value",
  "sparse_index_dim",
  "sparse_num_index_heads",
  "sparse_topk_blocks",
  "sparse_block_size",
  "sparse_init_block",
  "sparse_local_block",
];

/** Reads which layers have an indexer, and its sizes. transformers 5 has other names than published files. */
function indexerOf(
  config: Config,
  { layers, kvHeads }: { readonly layers: number; readonly kvHeads: number },
): Indexer & { readonly mixerOf: (layer: number) => string } {
  const key = "sparse_attention_config";
  const inner = innerConfig(config, key) ?? {};
  requireField(inner, "use_sparse_attention", true);
  requireField(inner, "sparse_score_type", "max");
  const unknown = Object.keys(inner).find((name) => !FIELDS.includes(name));
  if (unknown !== undefined) {
    throw fieldError(unknown, inner[unknown], `absent from '${key}'`);
  }
  const listed = flags(inner, "sparse_attention_freq");
  const withoutValues = flags(inner, "sparse_disable_index_value");
  const mixerOf = layerTypes(
    config,
    ["full_attention", SPARSE],
    (layer) => listed(layer) ? SPARSE : "full_attention",
  );
  const isSparse = (layer: number) => mixerOf(layer) === SPARSE;
  const sparse = layersWhere(layers, isSparse);
  if (sparse.some((layer) => withoutValues(layer) === false)) {
    throw fieldError(
      "sparse_disable_index_value",
      anyField(inner, "sparse_disable_index_value"),
      "1 in layers with an indexer, the only one built",
    );
  }
  const size = (published: string, name: string, value: number, min = 1) =>
    integerField(inner, published, {
      default: integerField(config, name, { default: value, min }),
      min,
    });
  const heads = size("sparse_num_index_heads", "index_n_heads", 4);
  const blocks = size("sparse_topk_blocks", "index_topk_blocks", 16);
  const first = integerField(inner, "sparse_init_block", {
    default: 0,
    min: 0,
  });
  const local = size("sparse_local_block", "index_local_blocks", 1, 0);
  const isSome = sparse.length > 0;
  if (isSome && heads !== kvHeads) {
    throw fieldError(
      "index_n_heads",
      heads,
      `${kvHeads}, one for each of the 'num_key_value_heads'`,
    );
  }
  if (isSome && first + local > blocks) {
    throw fieldError(
      "index_topk_blocks",
      blocks,
      `at least ${first + local}, the number of blocks that are always chosen`,
    );
  }
  return {
    mixerOf,
    dim: size("sparse_index_dim", "index_head_dim", 128),
    size: size("sparse_block_size", "index_block_size", 128),
    blocks,
    first,
    local,
  };
}

/** Axes of the indexer of a layer. */
type IndexAxis = "indexDim" | "indexAll";

/** Builds the model of a configuration. */
function build(config: MiniMaxM3Config, options: DecoderOptions): Model {
  const { ffn, sharedFfn, denseFfn, limit, alpha } = config;
  const glu: Glu = (gate, up) =>
    swigluOai(gate, up as typeof gate, { limit, alpha }) as typeof gate;
  return decoderModel(config, {
    axes: groupedAxes(config),
    centred: true,
    ...config.wrapped ? { names: WRAPPED_CAUSAL } : {},
    attend(m, rows, layer) {
      const { dim, size } = config.indexer;
      const axes = { indexDim: dim, indexAll: config.kvHeads * dim };
      return m.block("self_attn", axes, (m) => {
        const chosen = layer.kind.mixer === SPARSE
          ? {
            selected: chooseBlocks(m, rows, layer, config),
            selectedBlock: size,
          }
          : {};
        const heads = normHeads(m, projectHeads(m, rows), {
          epsilon: config.epsilon,
          centred: true,
        });
        const rotated = rotate(heads, config.rotary, layer);
        return attendHeads(m, rotated, layer, chosen);
      });
    },
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

/** Chooses the blocks of keys that tokens attend to, for each key head. */
function chooseBlocks(
  m: DecoderScope<"kvHead" | IndexAxis>,
  rows: Rows,
  layer: Layer,
  { epsilon, rotary, indexer }: MiniMaxM3Config,
): Tensor<"token kvHead selected", "i32"> {
  const { size, blocks, first, local } = indexer;
  const { sequence, position } = layer;
  const rotated = <A extends string>(x: Tensor<A, "f32">, name: string) => {
    const gain = add(m.param(`${name}.weight`, "indexDim"), 1);
    const any = x as Tensor as Tensor<"token indexDim", "f32">;
    const normed = rmsNorm(any, gain, "indexDim", { epsilon });
    const y = rope(normed, "indexDim", { position, ...rotary });
    return y as Tensor as Tensor<A, "f32">;
  };
  const queries = dot(
    rows,
    m.param("index_q_proj.weight", "indexAll embed"),
    "embed",
  );
  const key = dot(
    rows,
    m.param("index_k_proj.weight", "indexDim embed"),
    "embed",
  );
  const { selected, keys } = selectBlocks(
    rotated(split(queries, "indexAll", "kvHead indexDim"), "index_q_norm"),
    {
      key: rotated(key, "index_k_norm"),
      keys: m.state("index_keys", "sequence context indexDim"),
      sequence,
      position,
      block: size,
      k: blocks,
      first,
      local,
    },
  );
  layer.keep(`${layer.name}.self_attn.index_keys`, keys);
  return selected;
}
