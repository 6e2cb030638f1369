/**
 * Llama 4, text. Expert inputs are multiplied by the routing weight, and there is a shared expert. Layers without
 * rotary positions see all positions; the others see only their own chunk.
 */

import { add, type Model, mul } from "switchyard-moe";
import {
  attendHeads,
  booleanField,
  type Config,
  decoderModel,
  type DecoderOptions,
  defineFamily,
  experts,
  fusedExperts,
  groupedAxes,
  type GroupedDecoder,
  groupedFields,
  type Heads,
  integerField,
  integersField,
  type Layer,
  layersWhere,
  mlp,
  plainNorm,
  positiveField,
  projectHeads,
  requireField,
  requireLayerTypes,
  rotate,
  routeLayer,
  type Temperature,
  temperature,
} from "switchyard-moe/models";

/** The family of `Llama4ForCausalLM`. */
export const family = defineFamily({
  architectures: ["Llama4ForCausalLM"],
  config: readConfig,
  build,
});

/** A Llama 4 text configuration. */
interface Llama4Config extends GroupedDecoder {
  /** Hidden size of a layer without experts. */
  readonly denseFfn: number;
  /** Chunk size: tokens of layers with positions see only their own chunk. */
  readonly chunk: number;
  /** Queries and keys of layers with positions are normalized. */
  readonly normed: boolean;
  /** Experts are one tensor. In GGUF files they are separate. */
  readonly fused: boolean;
  /** Queries of layers without positions grow with the position. Undefined: they do not. */
  readonly temperature: Temperature | undefined;
}

/** Reads a config.json of `Llama4ForCausalLM`. Missing fields have transformers' defaults. */
function readConfig(config: Config): Llama4Config {
  requireField(config, "attention_bias", false);
  const fields = groupedFields(config, {
    layers: 48,
    vocabulary: 202048,
    embed: 5120,
    heads: 40,
    kvHeads: 8,
    headDim: 128,
    experts: 16,
    expertsPerToken: 1,
    ffn: 8192,
    epsilon: 1e-5,
    theta: 500000,
    maxPositions: 131072,
    interleaved: true,
  }, { experts: "num_local_experts", ffn: "intermediate_size" });
  const step = integerField(config, "interleave_moe_layer_step", {
    default: 1,
  });
  const sparse = integersField(config, "moe_layers") ??
    layersWhere(fields.layers, (layer) => (layer + 1) % step === 0);
  const layers = integersField(config, "no_rope_layers") ?? [];
  const every = integerField(config, "no_rope_layer_interval", { default: 4 });
  // The name of this field means the opposite of its value: 1 marks layers with positions.
  const hasPositions = (layer: number) =>
    layers.length > 0 ? layers[layer] === 1 : (layer + 1) % every !== 0;
  requireLayerTypes(
    config,
    (layer) => hasPositions(layer) ? "chunked_attention" : "full_attention",
  );
  return {
    ...fields,
    denseFfn: integerField(config, "intermediate_size_mlp", {
      default: 16384,
    }),
    kindOf: (layer) => ({
      experts: sparse.includes(layer),
      rotated: hasPositions(layer),
    }),
    chunk: integerField(config, "attention_chunk_size", { default: 8192 }),
    normed: booleanField(config, "use_qk_norm", { default: true }),
    fused: booleanField(config, "fused_experts", { default: true }),
    temperature:
      booleanField(config, "attn_temperature_tuning", { default: true })
        ? {
          floor: integerField(config, "floor_scale", { default: 8192 }),
          scale: positiveField(config, "attn_scale", { default: 0.1 }),
        }
        : undefined,
  };
}

/** Builds the model of a configuration. */
function build(config: Llama4Config, options: DecoderOptions): Model {
  const { ffn, denseFfn, rotary, chunk } = config;
  return decoderModel(config, {
    axes: groupedAxes(config),
    attend: (m, rows, layer) =>
      m.block("self_attn", {}, (m) => {
        const heads = projectHeads(m, rows);
        if (!layer.kind.rotated) {
          return attendHeads(m, heat(heads, layer, config), layer);
        }
        const rotated = rotate(heads, rotary, layer);
        const ready = config.normed ? norm(rotated, config) : rotated;
        return attendHeads(m, ready, layer, { chunk });
      }),
    feed(m, rows, layer) {
      const name = "feed_forward";
      if (!layer.kind.experts) {
        return mlp(m, rows, { name, ffn: denseFfn });
      }
      return m.block(name, { ffn, gateUp: 2 * ffn }, (m) => {
        const routing = routeLayer(m, rows, layer, {
          router: "router",
          topK: config.expertsPerToken,
          preset: "llama4",
        });
        const shared = mlp(m, rows, { name: "shared_expert", ffn });
        const routed = config.fused
          ? fusedExperts(m, rows, routing, {
            ffn,
            inward: "experts.gate_up_proj",
            outward: "experts.down_proj",
            transposed: true,
          })
          : experts(m, rows, routing);
        return add(routed, shared);
      });
    },
  }, options);
}

/** Normalizes queries and keys per head, without a gain. */
function norm({ q, k, v }: Heads, { epsilon }: Llama4Config): Heads {
  return {
    q: plainNorm(q, "headDim", epsilon),
    k: plainNorm(k, "headDim", epsilon),
    v,
  };
}

/** Returns heads whose queries grow with the position, counted from 1. */
function heat(heads: Heads, layer: Layer, config: Llama4Config): Heads {
  if (config.temperature === undefined) return heads;
  const growth = temperature(add(layer.position, 1), config.temperature);
  return { ...heads, q: mul(heads.q, growth) };
}
