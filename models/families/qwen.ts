/** Shared code of the Qwen families. */

import { add, dot, mul, sigmoid, sum } from "switchyard-moe";
import {
  booleanField,
  type Config,
  type DecoderScope,
  type GroupedDecoder,
  type GroupedDefaults,
  groupedFields,
  ignoreFields,
  integerField,
  integersField,
  type Layer,
  mlp,
  requireField,
  routeLayer,
  type Rows,
  type TokenRouting,
} from "switchyard-moe/models";

/** A Qwen configuration. */
export interface QwenConfig extends GroupedDecoder {
  /** Hidden size of a layer without experts. */
  readonly denseFfn: number;
  /** Divide the weights of a token's experts by their sum. */
  readonly normalize: boolean;
}

/** Reads the shared fields. Every `decoder_sparse_step`-th layer has experts, except those in `mlp_only_layers`. */
export function qwenFields(
  config: Config,
  defaults: GroupedDefaults & {
    readonly denseFfn: number;
    readonly normalize?: boolean;
  },
): QwenConfig {
  requireField(config, "use_sliding_window", false);
  ignoreFields(config, ["sliding_window", "max_window_layers"]);
  const dense = integersField(config, "mlp_only_layers") ?? [];
  const step = integerField(config, "decoder_sparse_step", { default: 1 });
  return {
    ...groupedFields(config, defaults, {
      experts: expertsField(config),
      ffn: "moe_intermediate_size",
    }),
    denseFfn: integerField(config, "intermediate_size", {
      default: defaults.denseFfn,
    }),
    normalize: booleanField(
      config,
      "norm_topk_prob",
      { default: defaults.normalize ?? false },
    ),
    kindOf: (layer) => ({
      experts: !dense.includes(layer) && (layer + 1) % step === 0,
    }),
  };
}

/** Returns the name of the number of experts. Transformers 5 writes "num_local_experts". */
export function expertsField(config: Config): string {
  return config["num_experts"] === undefined &&
      config["num_local_experts"] !== undefined
    ? "num_local_experts"
    : "num_experts";
}

/** Experts with a gated shared expert. */
export function feedGated(
  m: DecoderScope<"ffn" | "gateUp">,
  rows: Rows,
  layer: Layer,
  { topK, normalize, sharedFfn, experts }: {
    readonly topK: number;
    readonly normalize: boolean;
    readonly sharedFfn: number;
    readonly experts: (routing: TokenRouting) => Rows;
  },
): Rows {
  const routing = routeLayer(m, rows, layer, {
    topK,
    preset: "qwen2Moe",
    normalize: normalize ? "chosen" : "none",
  });
  const open = m.block(
    "shared_expert_gate",
    { gate: 1 },
    (m) =>
      sigmoid(sum(dot(rows, m.param("weight", "gate embed"), "embed"), "gate")),
  );
  const shared = { name: "shared_expert", ffn: sharedFfn };
  return add(experts(routing), mul(mlp(m, rows, shared), open));
}
