/** `quantization_config` of config.json, or hf_quant_config.json: which matrices are quantized, and how. */

import type { WeightEncoding } from "../../spec/weights/encoding.ts";
import { DataError } from "../../spec/errors.ts";
import {
  FILED_DTYPES,
  packedBy,
  type PackedDType,
  PACKINGS,
} from "../../spec/weights/packed.ts";
import { shown } from "../../spec/shown.ts";

type Config = { readonly [key: string]: unknown };

/** The encoding of the matrix of a module. Undefined: it is not quantized. */
export type Quantization = (module: string) => WeightEncoding | undefined;

/** Routed experts. */
const EXPERTS = /(^|\.)experts(\.|$)/;

/** Embeddings, outputs and routers: quantized only if `quantized_layers` lists them. */
const UNQUANTIZED =
  /(^|\.)(embed_tokens|lm_head)(\.|$)|(^|\.)(gate|router)$|\.router\./;

/** One encoding for all matrices except `UNQUANTIZED` and those of the modules that match a pattern of `skipped`. */
export function quantizedAs(
  encoding: WeightEncoding,
  skipped: readonly string[] = [],
): Quantization {
  // Compiled on demand: checkpoints that are only run may have expressions that JavaScript lacks.
  let unquantized: readonly RegExp[] | undefined;
  return (module) => {
    unquantized ??= [UNQUANTIZED, ...skipped.map(modulesOf)];
    return unquantized.some((pattern) => pattern.test(module))
      ? undefined
      : encoding;
  };
}

/** A module without the names of the parts that contain the layers, which lists spell in different ways. */
function withoutRoot(module: string): string {
  return module.replace(/^((language_)?model\.)+/, "");
}

/** A pattern of modules: a regular expression (`re:`), a glob, or the name of a module or of a parent module. */
function modulesOf(pattern: string): RegExp {
  if (pattern.startsWith("re:")) return new RegExp(`^(?:${pattern.slice(3)})`);
  const words = withoutRoot(pattern).split("*").map((word) =>
    word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")
  );
  return new RegExp(`(^|\\.)${words.join("[^.]*")}(\\.|$)`);
}

/** Keys of lists of patterns of unquantized modules. */
const SKIPPED = [
  "modules_to_not_convert",
  "ignored_layers",
  "ignore",
  "exclude_modules",
];

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
    const { type, num_bits: bits, group_size: group } = weights;
    if (type === "float" && bits === 8) {
      const block = weights["block_structure"];
      if (isPair(block)) return { name: "fp8", block };
      return weights["strategy"] === "channel"
        ? { name: "fp8", channel: true }
        : { name: "fp8" };
    }
    if (type === "float" && bits === 4 && group === 16) {
      return { name: "nvfp4" };
    }
    if (type === "float" && bits === 4 && group === 32) {
      return { name: "mxfp4" };
    }
    if (type !== "int") {
      throw unknown(`weights of type ${JSON.stringify(type)}`);
    }
    return {
      name: "int4",
      ...groupOf(weights),
      zeros: weights["symmetric"] === false,
    };
  },
  modelopt: (config) => algorithmOf(config, "quant_algo"),
};

/** Algorithms of NVIDIA ModelOpt whose weights are decoded from elements and scales alone. */
const ALGORITHMS: { readonly [name: string]: WeightEncoding } = {
  FP8: { name: "fp8" },
  FP8_PER_CHANNEL_PER_TOKEN: { name: "fp8", channel: true },
  FP8_PB_WO: { name: "fp8", block: [128, 128] },
  MXFP8: { name: "mxfp8" },
  NVFP4: { name: "nvfp4" },
  W4A16_NVFP4: { name: "nvfp4" },
};

/** The encoding of an algorithm, named in upper or lower case. */
function algorithmOf(
  config: Config | undefined,
  key: "quant_algo" | "moe_quant_algo",
): WeightEncoding {
  const name = config?.[key];
  const known = typeof name === "string" ? name.toUpperCase() : "";
  if (Object.hasOwn(ALGORITHMS, known)) return ALGORITHMS[known]!;
  throw new DataError(
    `Cannot read the quantization: '${key}' is ${
      shown(JSON.stringify(name))
    }. Use a model in one of ${
      Object.keys(ALGORITHMS).join(", ")
    }, MIXED_PRECISION`,
  );
}

/** ModelOpt's MIXED_PRECISION: the quantized modules, or parents of them, each with its algorithm. */
function mixedPrecision(layers: Config): Quantization {
  const listed = new Map(
    Object.entries(layers).map(([module, layer]) => [
      withoutRoot(module),
      algorithmOf(objectOf(layer), "quant_algo"),
    ]),
  );
  const find: Quantization = (module) => {
    const end = module.lastIndexOf(".");
    return listed.get(module) ??
      (end < 0 ? undefined : find(module.slice(0, end)));
  };
  return (module) => find(withoutRoot(module));
}

/** Names of methods, for messages. */
const KNOWN = [
  ...new Set([
    ...Object.keys(METHODS),
    ...FILED_DTYPES.map((dtype) =>
      PACKINGS[dtype].file!.config["quant_method"]
    ),
  ]),
];

/** config.json without the `quantization_config` of the model or of its text model: files say how they are stored. */
export function withoutQuantization(config: Config): Config {
  const { quantization_config: _, ...model } = config;
  const text = objectOf(config["text_config"]);
  if (text?.["quantization_config"] === undefined) return model;
  const { quantization_config: __, ...rest } = text;
  return { ...model, text_config: rest };
}

/**
 * Parses a `quantization_config`. Throws DataError for an unknown method.
 *
 * @param expertDType DeepSeek-V4's `expert_dtype`
 */
export function readQuantization(
  given: Config,
  expertDType?: unknown,
): Quantization {
  // hf_quant_config.json of ModelOpt has one more level.
  const config = { ...given, ...objectOf(given["quantization"]) };
  const others = readMethod(config);
  const encoding = expertsOf(config, expertDType);
  if (encoding === undefined) return others;
  const experts = quantizedAs(encoding, skippedBy(config));
  return (module) => (EXPERTS.test(module) ? experts : others)(module);
}

/** The encoding of experts, if another method quantized the rest of the model. */
function expertsOf(
  config: Config,
  expertDType: unknown,
): WeightEncoding | undefined {
  // ModelOpt quantizes experts again, and leaves `expert_dtype` as it was.
  if (typeof config["moe_quant_algo"] === "string") {
    return algorithmOf(config, "moe_quant_algo");
  }
  return expertDType === "fp4" ? { name: "mxfp4" } : undefined;
}

/** The quantization of `quant_method`. */
function readMethod(config: Config): Quantization {
  const method = config["quant_method"];
  if (method === "modelopt" && config["quant_algo"] === "MIXED_PRECISION") {
    return mixedPrecision(objectOf(config["quantized_layers"]) ?? {});
  }
  const packed = packedOf(config);
  const read = packed
    ? () => ({ name: packed })
    : typeof method === "string" && Object.hasOwn(METHODS, method)
    ? METHODS[method]
    : undefined;
  if (read === undefined) {
    throw unknown(`'quant_method' is ${JSON.stringify(method)}`);
  }
  return quantizedAs(read(config), skippedBy(config));
}

/** Patterns of unquantized modules. */
function skippedBy(config: Config): string[] {
  return SKIPPED
    .flatMap((key): unknown => config[key] ?? [])
    .filter((name): name is string => typeof name === "string");
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

/** The value, if it is an object. */
export function objectOf(value: unknown): Config | undefined {
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
