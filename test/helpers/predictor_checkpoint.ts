/** Checkpoints with a layer for multi-token prediction, with published tensor names. */

import path from "node:path";
import { readFile, writeFile } from "node:fs/promises";
import {
  type HostTensor,
  readTensors,
  type Tensors,
  writeSafetensors,
} from "../../engine/mod.ts";
import { uniformNoise } from "../../engine/noise.ts";
import { files } from "./checkpoints.ts";
import { sum } from "../../spec/sum.ts";
import { copyCheckpoint } from "./cli.ts";

/** Tensor names of a family: prefixes of the copied layer and of the new layer, and its other tensors. */
interface Names {
  readonly from: string;
  readonly to: string;
  readonly tokenNorm: string;
  readonly hiddenNorm: string;
  readonly join: string;
  readonly norm: string;
  /** Maps the rest of a copied tensor's name. Undefined: not copied. Default: identity. */
  readonly copied?: (rest: string) => string | undefined;
  /** Fields of config.json that declare the layer. */
  readonly declared: object;
  /** Fields of config.json for a model of only this layer. */
  readonly alone: object;
  /** Maps the rest of a tensor's name in that model. Default: identity. */
  readonly aloneName?: (rest: string) => string;
  /** Factors of norm weights in that model, by the end of their names. */
  readonly factors?: { readonly [end: string]: number };
  /** Epsilon of the norms. Default: 1e-6. */
  readonly epsilon?: number;
  /** Whether norm weights are stored minus 1. */
  readonly centred?: true;
}

const NUMBERED: Names = {
  from: "model.layers.2.",
  to: "model.layers.3.",
  tokenNorm: "model.layers.3.enorm.weight",
  hiddenNorm: "model.layers.3.hnorm.weight",
  join: "model.layers.3.eh_proj.weight",
  norm: "model.layers.3.shared_head.norm.weight",
  declared: { num_nextn_predict_layers: 1 },
  alone: { first_k_dense_replace: 0, mlp_layer_types: ["sparse"] },
};

/** A dense layer of DeepSeek-V3 whose latents are scaled: LongCat-Flash. */
const LONGCAT: Names = {
  from: "model.layers.1.",
  to: "model.mtp.layers.0.",
  tokenNorm: "model.mtp.layers.0.enorm.m.weight",
  hiddenNorm: "model.mtp.layers.0.hnorm.m.weight",
  join: "model.mtp.layers.0.eh_proj.weight",
  norm: "model.mtp.norm.weight",
  copied: (rest) =>
    /^(self_attn|mlps|\w+_layernorm)\.0\./.test(rest)
      ? rest.replace(".0.", ".").replace("mlps.", "transformer_layer.mlp.")
      : undefined,
  declared: {},
  alone: {
    architectures: ["DeepseekV3ForCausalLM"],
    model_type: "deepseek_v3",
    first_k_dense_replace: 1,
    intermediate_size: 80,
    moe_intermediate_size: 24,
    num_experts_per_tok: 4,
    n_group: 1,
    topk_group: 1,
    expert_ffn_hidden_size: undefined,
    ffn_hidden_size: undefined,
    moe_topk: undefined,
    num_layers: undefined,
    zero_expert_num: undefined,
  },
  aloneName: (rest) => rest.replace("transformer_layer.", ""),
  factors: {
    "q_a_layernorm.weight": Math.sqrt(48 / 24),
    "kv_a_layernorm.weight": Math.sqrt(48 / 16),
  },
  epsilon: 1e-5,
};

/** Names by recorded checkpoint. */
export const PREDICTORS: { readonly [checkpoint: string]: Names } = {
  "deepseekv3-16e": NUMBERED,
  "glm4moe-16e": NUMBERED,
  "deepseekv32-16e": NUMBERED,
  "longcatflash-12e": LONGCAT,
  "qwen3next-16e": {
    from: "model.layers.3.",
    to: "mtp.layers.0.",
    tokenNorm: "mtp.pre_fc_norm_embedding.weight",
    hiddenNorm: "mtp.pre_fc_norm_hidden.weight",
    join: "mtp.fc.weight",
    norm: "mtp.norm.weight",
    declared: {},
    alone: { layer_types: ["full_attention"] },
    centred: true,
  },
};

/** Factor of output projections, so small that the next token depends mostly on the last one. */
const ADDED = 0.01;

/**
 * Copies a recorded checkpoint, adds the layer, and scales down all layers, so that many of its drafts are accepted.
 */
export async function predictorCheckpoint(
  name: string,
  folder: string,
): Promise<string> {
  const to = await copyCheckpoint(name, folder);
  return await change(
    to,
    (tensors) => withPredictor(name, tensors),
    PREDICTORS[name]!.declared,
  );
}

/** Changes the tensors and some fields of config.json of a checkpoint. Returns its folder. */
async function change(
  folder: string,
  by: (tensors: Tensors) => Tensors,
  fields: object,
): Promise<string> {
  const file = path.join(folder, "model.safetensors");
  const tensors = await readTensors(file, files);
  await writeFile(file, writeSafetensors(by(tensors)));
  const config = path.join(folder, "config.json");
  const json = JSON.parse(await readFile(config, "utf8")) as object;
  await writeFile(config, JSON.stringify({ ...json, ...fields }));
  return folder;
}

/**
 * Creates a checkpoint of only the prediction layer of another checkpoint. The embedding of token `i` is row i of the
 * layer's input, join · [norm(embedding), norm(hidden)], computed here in f64.
 */
export async function layerAlone(
  name: string,
  { ids, hidden, tensors, folder }: {
    readonly ids: readonly number[];
    /** Hidden state before each token. */
    readonly hidden: readonly ArrayLike<number>[];
    /** Tensors of the other checkpoint. */
    readonly tensors: Tensors;
    readonly folder: string;
  },
): Promise<string> {
  const names = PREDICTORS[name]!;
  const { to: from, tokenNorm, hiddenNorm, join: joining, norm } = names;
  const { aloneName = same, factors = {}, epsilon = 1e-6, centred } = names;
  const table = tensors["model.embed_tokens.weight"]!;
  const embed = table.shape[1]!;
  const dataOf = (name: string) => tensors[name]!.data;
  const centre = centred ? 1 : 0;
  const normed = (x: ArrayLike<number>, gains: string): number[] => {
    const squares = Array.from(x, (value) => value ** 2);
    const rms = Math.sqrt(sum(squares) / embed + epsilon);
    const gain = dataOf(gains);
    return Array.from(x, (value, i) => value / rms * (centre + gain[i]!));
  };
  const join = dataOf(joining);
  const rows = table.data.slice() as Float32Array;
  ids.forEach((id, at) => {
    const embedding = table.data.subarray(id * embed, (id + 1) * embed);
    const both = [
      ...normed(embedding, tokenNorm),
      ...normed(hidden[at]!, hiddenNorm),
    ];
    for (let i = 0; i < embed; i++) {
      const weights = join.subarray(2 * i * embed, 2 * (i + 1) * embed);
      rows[at * embed + i] = sum(both.map((value, j) => value * weights[j]!));
    }
  });
  const layer = Object.entries(tensors).filter(([name]) =>
    name.startsWith(from) &&
    ![tokenNorm, hiddenNorm, joining, norm].includes(name)
  );
  const scaled = (name: string, tensor: HostTensor): HostTensor => {
    const [, factor = 1] = Object.entries(factors)
      .find(([end]) => name.endsWith(end)) ?? [];
    const data = tensor.data as Float32Array;
    return { ...tensor, data: data.map((value) => factor * value) };
  };
  return await change(
    await copyCheckpoint(name, folder),
    () => ({
      ...Object.fromEntries(layer.map(([name, tensor]) => [
        `model.layers.0.${aloneName(name.slice(from.length))}`,
        scaled(name, tensor),
      ])),
      "model.embed_tokens.weight": { ...table, data: rows },
      "model.norm.weight": tensors[norm]!,
      "lm_head.weight": tensors["lm_head.weight"]!,
    }),
    { num_hidden_layers: 1, ...names.alone },
  );
}

function same(rest: string): string {
  return rest;
}

function withPredictor(name: string, tensors: Tensors): Tensors {
  const { from, to, copied = same, ...names } = PREDICTORS[name]!;
  const result: { [name: string]: HostTensor } = {};
  for (const [name, tensor] of Object.entries(tensors)) {
    const weak = /\.(o_proj|out_proj|down_proj)\.weight$/.test(name)
      ? {
        ...tensor,
        data: (tensor.data as Float32Array).map((value) => ADDED * value),
      }
      : tensor;
    result[name] = weak;
    const rest = name.startsWith(from)
      ? copied(name.slice(from.length))
      : undefined;
    if (rest !== undefined) result[`${to}${rest}`] = weak;
  }
  const embed = tensors["model.norm.weight"]!.shape[0]!;
  const gains = tensors["model.norm.weight"]!;
  const noise = uniformNoise(2 * embed * (embed + 1), {
    seed: 7,
    low: -1,
    high: 1,
  });
  const gain = (first: number): HostTensor => ({
    ...gains,
    data: (gains.data as Float32Array).map((value, i) =>
      value + 0.1 * noise[first + i]!
    ),
  });
  return {
    ...result,
    [names.tokenNorm]: gain(0),
    [names.hiddenNorm]: gain(embed),
    [names.norm]: gains,
    // Close to the embedding.
    [names.join]: {
      dtype: "f32",
      shape: [embed, 2 * embed],
      data: Float32Array.from({ length: 2 * embed ** 2 }, (_, i) => {
        const [row, column] = [Math.floor(i / (2 * embed)), i % (2 * embed)];
        return (row === column ? 1 : 0) + 0.02 * noise[2 * embed + i]!;
      }),
    },
  };
}
