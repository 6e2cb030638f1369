/** config.json from the keys of a GGUF file, and back. */

import { DataError } from "../../spec/errors.ts";
import type { ConfigFields, GgufArchitecture } from "./architecture.ts";
import { architectureOf } from "./architectures.ts";
import { endTokens } from "./end_tokens.ts";
import {
  type GgufHeader,
  type GgufKeys,
  layerCount,
  maxOf,
  numberOf,
  numbersOf,
  valueOf,
} from "./header.ts";
import { ropeScalingKeys, ropeScalingOf } from "./rope_scaling.ts";
import { unrepresentable } from "./unrepresentable.ts";
import type { GgufValue, GgufValues } from "./write.ts";

type Config = { readonly [field: string]: unknown };

/** The number of key heads, or a list by layer. */
const KEY_HEADS = "attention.head_count_kv";

/** The field with the number of layers that predict further tokens. */
const PREDICTORS = "num_nextn_predict_layers";

/** Fields of all architectures. */
const FIELDS: ConfigFields = {
  num_hidden_layers: "block_count",
  hidden_size: "embedding_length",
  num_attention_heads: "attention.head_count",
  num_key_value_heads: KEY_HEADS,
  head_dim: "attention.key_length",
  rms_norm_eps: "attention.layer_norm_rms_epsilon",
  rope_theta: "rope.freq_base",
  max_position_embeddings: "context_length",
  num_experts_per_tok: "expert_used_count",
  vocab_size: "vocab_size",
  sliding_window: "attention.sliding_window",
};

/** Endings of keys with float values. */
const FLOAT = /(epsilon|freq_base|softcapping|[_.]scale|_beta)$/;

/** The config.json of a file. */
export function configOf(
  path: string,
  header: GgufHeader,
): { readonly [field: string]: unknown } {
  const { name, row } = architectureOf(path, header);
  const { keys, tensors } = header;
  const tokens = keys["tokenizer.ggml.tokens"];
  checkKeys(path, keys, { name, row });
  const found = read(keys, `${name}.`, { ...FIELDS, ...row.fields });
  const rotated = numberOf(keys, `${name}.rope.dimension_count`);
  const width = numberOf(keys, `${name}.attention.key_length`);
  const scaling = ropeScalingOf(path, keys, { name, row });
  const latent = (of: string) =>
    numberOf(keys, `${name}.attention.${of}_mla`) ??
      numberOf(keys, `${name}.attention.${of}`);
  const config = {
    architectures: [row.architecture],
    vocab_size: Array.isArray(tokens) ? tokens.length : undefined,
    tie_word_embeddings: !tensors.some(({ name }) => name === "output.weight"),
    ...row.constants,
    ...row.listsDense
      ? { [row.listsDense]: denseLayers(name, header, row.listsDense) }
      : {},
    ...row.listsKeyHeads ? layerTypes(keys, `${name}.${KEY_HEADS}`, row) : {},
    ...Object.fromEntries(
      Object.entries(row.present ?? {}).map(([field, of]) => [
        field,
        tensors.some((tensor) => tensor.name === `blk.0.${of}`),
      ]),
    ),
    ...row.rotatesPart && rotated !== undefined && width !== undefined
      ? { partial_rotary_factor: rotated / width }
      : {},
    ...row.latent && rotated !== undefined
      ? {
        qk_nope_head_dim: (latent("key_length") ?? NaN) - rotated,
        v_head_dim: latent("value_length"),
      }
      : {},
    ...row.scaling && tensors.some(({ name }) => name === "rope_freqs.weight")
      ? { rope_scaling: row.scaling }
      : {},
    ...row.config?.read(name, header),
    ...Object.fromEntries(quotients(keys, name, row)),
    ...found,
    ...scaling || row.scalesByDefault || row.hasTemperature
      ? { rope_scaling: scaling ?? null }
      : {},
    ...typeof found["num_hidden_layers"] === "number"
      ? { num_hidden_layers: layerCount(name, keys) }
      : {},
    bos_token_id: numberOf(keys, "tokenizer.ggml.bos_token_id"),
    eos_token_id: endTokens(keys),
  };
  return Object.fromEntries(
    Object.entries(config).filter(([, value]) => value !== undefined),
  );
}

/** Fields computed as quotients: a key has the product of two fields, and another key the second. */
function quotients(
  keys: GgufKeys,
  name: string,
  { products = {}, fields }: GgufArchitecture,
): [string, number][] {
  return Object.entries(products).flatMap(([key, [first, second]]) => {
    const all: ConfigFields = { ...FIELDS, ...fields };
    const [product, by] = [key, [all[second!] ?? []].flat()[0]]
      .map((of) => numberOf(keys, `${name}.${of}`));
    return product === undefined || by === undefined
      ? []
      : [[first!, product / by]];
  });
}

/** Refuses a file that has another value for a key than all files of its architecture. */
function checkKeys(
  path: string,
  keys: GgufKeys,
  { name, row }: { readonly name: string; readonly row: GgufArchitecture },
): void {
  for (const [key, wanted] of Object.entries(row.keys ?? {})) {
    const found = valueOf(keys, `${name}.${key}`) ?? wanted;
    if (found === wanted) continue;
    throw new DataError(
      `Cannot open '${path}': its key '${name}.${key}' is ${found}, and only ${wanted} is read. Use another file`,
    );
  }
}

/** Returns the fields that keys provide. */
function read(keys: GgufKeys, prefix: string, fields: ConfigFields): Config {
  return Object.fromEntries(
    Object.entries(fields).flatMap(([field, names]): [string, unknown][] => {
      const value = [names].flat()
        .map((name) => valueOf(keys, prefix + name))
        .find((value) => value !== undefined);
      return value === undefined ? [] : [[field, value]];
    }),
  );
}

/** Types of layers and the number of key heads, from a list of numbers of key heads. */
function layerTypes(
  keys: GgufKeys,
  key: string,
  row: GgufArchitecture,
): Config {
  const [attention, other] = row.listsKeyHeads!;
  return {
    layer_types: numbersOf(keys, key).map((count) =>
      count > 0 ? attention : other
    ),
    num_key_value_heads: maxOf(keys, key),
  };
}

/** The numbers of layers without experts, or the types of all layers. */
function denseLayers(
  name: string,
  { keys, tensors }: GgufHeader,
  field: NonNullable<GgufArchitecture["listsDense"]>,
): (number | string)[] {
  const dense = tensors.flatMap((tensor) => {
    const [, layer] = /^blk\.(\d+)\.ffn_gate\.weight$/.exec(tensor.name) ?? [];
    return layer === undefined ? [] : [Number(layer)];
  });
  if (field === "mlp_only_layers") return dense;
  // Limits the length of the list if the keys are wrong: every layer has a tensor.
  const layers = Math.min(layerCount(name, keys), tensors.length);
  return Array.from(
    { length: layers },
    (_, layer) => dense.includes(layer) ? "dense" : "sparse",
  );
}

/**
 * Returns the keys for a config.json, except those of the tokenizer. Throws DataError for a field that the
 * architecture's keys cannot represent.
 *
 * @param predictors layers of the file that predict further tokens
 */
export function keysOf(
  config: Config,
  { name, row, predictors }: {
    readonly name: string;
    readonly row: GgufArchitecture;
    readonly predictors: number;
  },
): GgufValues {
  const values = new Map(Object.entries(flattened(config)));
  const sizes = headSizes(values, row);
  const scaling = ropeScalingKeys(scalingIn(config), {
    row,
    base: Number(values.get("rope_theta")),
    dim: sizes.rotated,
  });
  refuseOthers(values, { name, row, scaled: scaling === undefined });
  const { mrope_section: sections = row.sections } = scalingIn(config) as {
    readonly mrope_section?: readonly number[];
  };
  const types = values.get("layer_types") as readonly string[] | undefined;
  const keys = new Map<string, GgufValue>();
  for (
    const [field, names] of Object.entries({ ...FIELDS, ...row.fields })
  ) {
    if (names.length === 0 || field === PREDICTORS) continue;
    const value = values.get(field);
    const key = [names].flat()[0]!;
    if (typeof value === "boolean") keys.set(key, { bool: value });
    if (typeof value !== "number") continue;
    keys.set(key, FLOAT.test(key) ? { f32: value } : { u32: value });
  }
  const own: GgufValues = {
    ...Object.fromEntries(keys),
    ...scaling,
    ...predictors > 0
      ? {
        block_count: {
          u32: Number(values.get("num_hidden_layers")) + predictors,
        },
        nextn_predict_layers: { u32: predictors },
      }
      : {},
    "attention.key_length": { u32: sizes.key },
    "attention.value_length": { u32: sizes.value },
    "rope.dimension_count": { u32: sizes.rotated },
    ...Object.fromEntries(
      Object.entries(row.products ?? {}).map(([key, fields]) => [
        key,
        { u32: fields.reduce((n, field) => n * Number(values.get(field)), 1) },
      ]),
    ),
    ...Object.fromEntries(
      Object.entries(row.keys ?? {}).map(([key, value]) => [
        key,
        typeof value === "boolean" ? { bool: value } : { u32: value },
      ]),
    ),
    ...row.listsKeyHeads && types
      ? {
        [KEY_HEADS]: {
          i32s: types.map((type) =>
            type === row.listsKeyHeads![0]
              ? Number(values.get("num_key_value_heads"))
              : 0
          ),
        },
      }
      : {},
    // All heads share one key, the latent and the rotated part.
    ...row.latent === "split"
      ? {
        [KEY_HEADS]: { u32: 1 },
        "attention.key_length": {
          u32: Number(values.get("kv_lora_rank")) + sizes.rotated,
        },
        "attention.value_length": {
          u32: Number(values.get("kv_lora_rank")),
        },
        "attention.key_length_mla": { u32: sizes.key },
        "attention.value_length_mla": { u32: sizes.value },
      }
      : {},
    ...sections
      ? { "rope.dimension_sections": { i32s: [...sections, 0] } }
      : {},
    // Required by llama.cpp even if experts have a separate key.
    ...keys.has("feed_forward_length") ? {} : {
      feed_forward_length: {
        u32: Number(values.get("intermediate_size")),
      },
    },
    ...leadingDense(values, { name, row }),
    ...row.config?.write(name, values),
  };
  return {
    "general.architecture": { text: name },
    "general.alignment": { u32: 32 },
    "general.quantization_version": { u32: 2 },
    ...Object.fromEntries(
      Object.entries(own).map(([key, value]) => [`${name}.${key}`, value]),
    ),
  };
}

/** The number of layers before the first one with experts, which `mlp_layer_types` of config.json may list. */
function leadingDense(
  values: ReadonlyMap<string, unknown>,
  { name, row }: { readonly name: string; readonly row: GgufArchitecture },
): GgufValues {
  const key = "leading_dense_block_count";
  const types = values.get("mlp_layer_types");
  if (!Array.isArray(types) || !Object.values(row.fields).includes(key)) {
    return {};
  }
  const layers = types.slice(0, Number(values.get("num_hidden_layers")));
  const count = layers.lastIndexOf("dense") + 1;
  if (layers.slice(0, count).some((type) => type !== "dense")) {
    throw unrepresentable(name, "mlp_layer_types", types);
  }
  return { [key]: { u32: count } };
}

/** Elements of the keys and values of a head, and of the rotated part. */
function headSizes(
  values: ReadonlyMap<string, unknown>,
  { latent, rotatesPart }: GgufArchitecture,
): { readonly key: number; readonly value: number; readonly rotated: number } {
  const number = (field: string) => Number(values.get(field));
  if (latent) {
    const rotated = number("qk_rope_head_dim");
    const key = number("qk_nope_head_dim") + rotated;
    return { key, value: number("v_head_dim"), rotated };
  }
  const heads = number("num_attention_heads");
  const key = Number(values.get("head_dim") ?? number("hidden_size") / heads);
  const part = rotatesPart
    ? Number(values.get("partial_rotary_factor") ?? 1)
    : 1;
  return { key, value: key, rotated: key * part };
}

/**
 * Returns a configuration with rotary parameters as top-level fields, and the published name of the number of experts.
 */
function flattened(config: Config): Config {
  const { rope_parameters: rotary, ...rest } = config;
  // Transformers 5 writes the other name for Qwen.
  const { num_experts = rest["num_local_experts"] } = rest;
  const others = { ...rest, num_experts };
  return typeof rotary === "object" && rotary !== null
    ? { ...others, ...rotary as Config }
    : others;
}

/** The scaling of rotary positions. */
function scalingIn(config: Config): Config {
  const scaling = config["rope_scaling"] ?? config["rope_parameters"];
  const { partial_rotary_factor: _, max_position_embeddings: __, ...fields } =
    (scaling ?? {}) as Config;
  return fields;
}

/** Fields that change a model but have no key. Only these values can be written. */
function refuseOthers(
  config: ReadonlyMap<string, unknown>,
  { name, row, scaled }: {
    readonly name: string;
    readonly row: GgufArchitecture;
    /** Whether positions are scaled in another way than files can have. */
    readonly scaled: boolean;
  },
): void {
  const { constants = {}, equivalents = {}, fields, pattern } = row;
  const wanted = {
    ...scaled ? { rope_scaling: null, rope_type: "default" } : {},
    clip_qkv: null,
    ...Object.fromEntries(
      Object.entries(constants).filter(([field]) =>
        !Object.hasOwn(fields, field)
      ),
    ),
  };
  const types = config.get("layer_types");
  if (pattern && Array.isArray(types)) {
    const other = types.findIndex((type, i) =>
      type !== pattern[i % pattern.length]
    );
    if (other >= 0) throw unrepresentable(name, "layer_types", types[other]);
  }
  for (const [field, value] of Object.entries(wanted)) {
    const found = config.get(field) ?? null;
    if (found === value || found === null) continue;
    if (Object.hasOwn(equivalents, field) && equivalents[field] === found) {
      continue;
    }
    throw unrepresentable(name, field, found);
  }
}
