/**
 * Experts of DeepSeek-V3 and related families: group-limited routing by sigmoids and a bias, and shared experts. Some
 * layers have no experts.
 */

import { add } from "../compiler/mod.ts";
import {
  booleanField,
  type Config,
  ignoreFields,
  integerField,
  layerTypes,
  positiveField,
} from "./config.ts";
import type {
  Decoder,
  DecoderScope,
  Layer,
  LayerKind,
  Part,
  Rows,
} from "./decoder.ts";
import {
  experts,
  mlp,
  routeLayer,
  sparseOrDense,
  type TokenRouting,
} from "./feed_forward.ts";

/** The fields of such experts in config.json. */
export interface SharedExperts {
  /** Hidden size of all shared experts together, and of a layer without experts. */
  readonly sharedFfn: number;
  readonly denseFfn: number;
  readonly kindOf: (layer: number) => LayerKind;
  readonly expertGroups:
    | { readonly count: number; readonly keep: number }
    | undefined;
  /** Factor of expert weights. */
  readonly routedScale: number;
  /** Divide the weights of a token's experts by their sum. */
  readonly normalize: boolean;
  /**
   * Layers after the last one that predict further tokens. A checkpoint may contain them; only drafts use the first.
   */
  readonly predictors: number;
}

/** Field names that differ between families. */
export interface SharedFieldNames {
  /** Number of shared experts. Default: "n_shared_experts". */
  readonly sharedExperts?: string;
  /** First layer with experts. Default: "first_k_dense_replace". */
  readonly firstSparse?: string;
  /** Factor of expert weights. Default: "routed_scaling_factor". */
  readonly routedScale?: string;
  /** Groups of experts. Default: "n_group". */
  readonly groups?: string;
  /** Whether weights are divided by their sum. Default: "norm_topk_prob". */
  readonly normalize?: string;
}

/** A family's defaults. */
export interface SharedExpertDefaults {
  readonly denseFfn: number;
  readonly sharedExperts: number;
  readonly firstSparse: number;
  readonly routedScale: number;
  readonly normalize: boolean;
  readonly groups?: number;
  readonly topGroups?: number;
}

/** Reads the fields. `ffn`: hidden size of an expert. */
export function sharedExperts(
  config: Config,
  ffn: number,
  defaults: SharedExpertDefaults,
  names: SharedFieldNames = {},
): SharedExperts {
  const {
    sharedExperts: shared = "n_shared_experts",
    firstSparse: first = "first_k_dense_replace",
    routedScale = "routed_scaling_factor",
    groups = "n_group",
    normalize = "norm_topk_prob",
  } = names;
  const field = (key: string, value: number, min = 1) =>
    integerField(config, key, { default: value, min });
  const count = field(groups, defaults.groups ?? 1);
  if (count === 1) ignoreFields(config, ["topk_group"]);
  const sparse = sparseLayers(
    config,
    field(first, defaults.firstSparse, 0),
  );
  return {
    sharedFfn: ffn * field(shared, defaults.sharedExperts),
    denseFfn: field("intermediate_size", defaults.denseFfn),
    kindOf: (layer) => ({ experts: sparse(layer) }),
    expertGroups: count === 1
      ? undefined
      : { count, keep: field("topk_group", defaults.topGroups ?? 1) },
    routedScale: positiveField(config, routedScale, {
      default: defaults.routedScale,
    }),
    normalize: booleanField(config, normalize, {
      default: defaults.normalize,
    }),
    predictors: field("num_nextn_predict_layers", 0, 0),
  };
}

/** Returns which layers have experts: those in `mlp_layer_types`, or all from the layer `first` on. */
function sparseLayers(
  config: Config,
  first: number,
): (layer: number) => boolean {
  const typeOf = layerTypes(
    config,
    ["dense", "sparse"],
    (layer) => layer >= first ? "sparse" : "dense",
    "mlp_layer_types",
  );
  return (layer) => typeOf(layer) === "sparse";
}

/** Returns the prefixes of tensors that predict further tokens. `start`: prefix of all layers. */
export function predictorTensors(
  { layers, predictors }: Pick<SharedExperts, "predictors"> & Decoder,
  start = "model.layers",
): string[] {
  return Array.from(
    { length: predictors },
    (_, i) => `${start}.${layers + i}.`,
  );
}

/** Names of the router's tensors in its block. */
export interface RouterNames {
  /** Block of the matrix. Default: "gate". */
  readonly router?: string;
  /** Selection bias. Default: "gate.e_score_correction_bias". */
  readonly bias?: string;
}

/** Names of the router's tensors, and of the shared expert. Default: "shared_experts". */
export interface SharedNames extends RouterNames {
  readonly shared?: string;
}

/** Routes the tokens of a layer. */
export function routeShared(
  m: DecoderScope,
  rows: Rows,
  layer: Layer,
  config: SharedExperts & Decoder,
  { router = "gate", bias = "gate.e_score_correction_bias" }: RouterNames = {},
): TokenRouting {
  const { expertGroups } = config;
  return routeLayer(m, rows, layer, {
    router,
    topK: config.expertsPerToken,
    preset: "deepseekV3",
    // The bias affects the choice of experts but not their weights.
    bias: m.param(bias, "expert"),
    ...expertGroups ? { expertGroups } : {},
    normalize: config.normalize ? "chosen" : "none",
    scale: config.routedScale,
  });
}

/** The `feed` of a configuration: the block `mlp`. */
export function feedShared(
  config: SharedExperts & Decoder & { readonly ffn: number },
  names: SharedNames = {},
): Part {
  const { sharedFfn } = config;
  const { shared: name = "shared_experts" } = names;
  return sparseOrDense(config, (m, rows, layer) => {
    const routing = routeShared(m, rows, layer, config, names);
    return add(
      experts(m, rows, routing),
      mlp(m, rows, { name, ffn: sharedFfn }),
    );
  });
}
