/** Storage dtypes of weights according to config.json, for plans without weights. */

import type { ParamFacts } from "../compiler/mod.ts";
import {
  type EncodingName,
  fileDTypeOf,
  isFileDType,
  type WeightEncoding,
} from "../spec/encoding.ts";
import {
  FILED_DTYPES,
  packedBy,
  type PackedDType,
  packingOf,
  PACKINGS,
} from "../spec/packed.ts";
import type { FileDType } from "../spec/dtype.ts";
import { shown } from "../spec/shown.ts";
import { DataError } from "../spec/errors.ts";

type Config = { readonly [key: string]: unknown };

/** Storage of each parameter, and notes about it. */
export interface StoredAs {
  of(param: ParamFacts): WeightEncoding;
  readonly notes: readonly string[];
}

/** Names of tensor dtypes in config.json. */
const DTYPES: { readonly [name: string]: EncodingName } = {
  float32: "f32",
  float16: "f16",
  bfloat16: "bf16",
};

/** Embeddings, outputs and routers, which published quantizations do not change. */
const UNQUANTIZED =
  /(^|\.)(embed_tokens|lm_head)(\.|$)|(^|\.)(gate|router)$|\.router\./;

/** Reads storage dtypes. `dtype` overrides the file. Throws DataError for an unknown quantization. */
export function readStoredAs(
  config: Config,
  dtype: EncodingName | undefined,
): StoredAs {
  const text = objectOf(config["text_config"]) ?? {};
  const named = config["dtype"] ?? config["torch_dtype"] ?? text["dtype"] ??
    text["torch_dtype"];
  if (
    dtype === undefined && named !== undefined && named !== null &&
    !(typeof named === "string" && Object.hasOwn(DTYPES, named))
  ) {
    throw new DataError(
      `Cannot read config.json: its dtype is ${
        shown(JSON.stringify(named))
      }. Known ones are ${
        Object.keys(DTYPES).join(", ")
      }; or give the dtype of the weights with --dtype`,
    );
  }
  const plain: WeightEncoding = {
    name: (typeof named === "string" ? DTYPES[named] : undefined) ?? "bf16",
  };
  if (dtype === "f32" || dtype === "f16" || dtype === "bf16") {
    return { of: () => ({ name: dtype }), notes: [] };
  }
  const quantization = dtype === undefined
    ? objectOf(config["quantization_config"])
    : undefined;
  const packed = dtype !== undefined
    ? { encoding: defaultForm(dtype), skipped: [] }
    : quantization && readQuantization(quantization);
  const notes = named === undefined
    ? [
      `config.json names no dtype: what is not quantized is planned as bf16. Say another with --dtype`,
    ]
    : [];
  if (!packed) return { of: (param) => storedPlain(param, plain), notes };
  const { encoding, skipped } = packed;
  return {
    of: (param) =>
      isPacked(param, encoding, skipped) ? encoding : storedPlain(param, plain),
    notes,
  };
}

/** Compile dtypes of parameters by source tensor. */
export function compiledAs(
  stored: StoredAs,
  params: readonly ParamFacts[],
): { readonly [tensor: string]: FileDType } {
  return Object.fromEntries(
    params.map((param) => [
      param.tensor,
      fileDTypeOf(stored.of(param), param.matrix.columns),
    ]),
  );
}

/** A selection bias is f32 in every published checkpoint with one. */
function storedPlain(param: ParamFacts, plain: WeightEncoding): WeightEncoding {
  if (param.dtype !== "f32" && param.dtype !== "f16") {
    return { name: param.dtype };
  }
  return param.selection ? { name: "f32" } : plain;
}

function defaultForm(name: EncodingName): WeightEncoding {
  return name === "fp8" ? { name, block: [128, 128] } : { name };
}

/** Every matrix except embeddings, outputs and routers, or experts only. */
function isPacked(
  param: ParamFacts,
  { name }: WeightEncoding,
  skipped: readonly string[],
): boolean {
  if (param.use !== "matrix") return false;
  const packing = isFileDType(name) ? packingOf(name) : undefined;
  if (packing?.file?.expertsOnly && param.expert === undefined) return false;
  const module = param.tensor.replace(/\.weight$/, "");
  return !UNQUANTIZED.test(module) &&
    !skipped.some((pattern) => matchesModule(pattern, module));
}

/** A pattern is a regular expression (`re:`), a glob, or the name of a module or of a parent module. */
function matchesModule(pattern: string, module: string): boolean {
  if (pattern.startsWith("re:")) {
    return new RegExp(`^(?:${pattern.slice(3)})`).test(module);
  }
  const words = pattern.split("*").map((word) =>
    word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")
  );
  return new RegExp(`(^|\\.)${words.join("[^.]*")}(\\.|$)`).test(module);
}

interface Quantization {
  readonly encoding: WeightEncoding;
  readonly skipped: readonly string[];
}

/** By `quant_method`. */
const METHODS: {
  readonly [method: string]: (config: Config) => WeightEncoding;
} = {
  fp8: (config) => {
    const block = config["weight_block_size"];
    return { name: "fp8", ...isPair(block) ? { block } : {} };
  },
  gptq: (config) => ({ name: "gptq", ...groupOf(config) }),
  awq: (config) => ({
    name: "awq",
    ...groupOf(config),
    zeros: config["zero_point"] !== false,
  }),
  "compressed-tensors": (config) => {
    const weights = weightsOf(config);
    if (weights["type"] === "float" && weights["num_bits"] === 8) {
      const block = weights["block_structure"];
      return { name: "fp8", ...isPair(block) ? { block } : {} };
    }
    if (weights["type"] !== "int") {
      throw unknown(`weights of type ${JSON.stringify(weights["type"])}`);
    }
    return {
      name: "int4",
      ...groupOf(weights),
      zeros: weights["symmetric"] === false,
    };
  },
};

/** Names of methods, for messages. */
const KNOWN = [
  ...new Set([
    ...Object.keys(METHODS),
    ...FILED_DTYPES.map((dtype) =>
      PACKINGS[dtype].file!.config["quant_method"]
    ),
  ]),
];

/** Parses a `quantization_config`. Throws DataError for an unknown method. */
export function readQuantization(config: Config): Quantization {
  const method = config["quant_method"];
  const packed = packedOf(config);
  const read = packed
    ? () => ({ name: packed })
    : typeof method === "string" && Object.hasOwn(METHODS, method)
    ? METHODS[method]
    : undefined;
  if (read === undefined) {
    throw unknown(`'quant_method' is ${JSON.stringify(method)}`);
  }
  const skipped = ["modules_to_not_convert", "ignored_layers", "ignore"]
    .flatMap((key): unknown => config[key] ?? [])
    .filter((name): name is string => typeof name === "string");
  return { encoding: read(config), skipped };
}

/** The encoding of a `quantization_config` that kernels read directly. */
function packedOf(config: Config): PackedDType | undefined {
  return packedBy({ ...weightsOf(config), ...config });
}

/** The weights of the first group of compressed-tensors. */
function weightsOf(config: Config): Config {
  const [group] = Object.values(objectOf(config["config_groups"]) ?? {});
  return objectOf(objectOf(group)?.["weights"]) ?? {};
}

function groupOf(config: Config): { bits?: number; group?: number } {
  const bits = config["bits"] ?? config["num_bits"];
  const group = config["group_size"] ?? config["q_group_size"];
  return {
    ...typeof bits === "number" && bits > 0 ? { bits } : {},
    ...typeof group === "number" && group > 0 ? { group } : {},
  };
}

function isPair(value: unknown): value is readonly [number, number] {
  return Array.isArray(value) && value.length === 2 &&
    value.every((n) => Number.isInteger(n) && n > 0);
}

function objectOf(value: unknown): Config | undefined {
  return typeof value === "object" && value !== null && !Array.isArray(value)
    ? value as Config
    : undefined;
}

function unknown(what: string): DataError {
  return new DataError(
    `Cannot read config.json: 'quantization_config' is not known, ${what}. Known methods are ${
      KNOWN.join(", ")
    }; or say how weights are stored with --dtype`,
  );
}
