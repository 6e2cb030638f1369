/** Storage dtypes of weights according to config.json, for plans without weights. */

import type { ParamFacts } from "../../compiler/mod.ts";
import {
  type EncodingName,
  fileDTypeOf,
  isFileDType,
  type WeightEncoding,
} from "../../spec/weights/encoding.ts";
import { packingOf } from "../../spec/weights/packed.ts";
import type { FileDType } from "../../spec/dtype.ts";
import { shown } from "../../spec/shown.ts";
import { DataError } from "../../spec/errors.ts";
import { configField } from "./config_field.ts";
import {
  objectOf,
  type Quantization,
  quantizedAs,
  readQuantization,
} from "./quantization_config.ts";

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
    ? objectOf(configField(config, "quantization_config"))
    : undefined;
  const packed = dtype !== undefined
    ? quantizedAs(defaultForm(dtype))
    : quantization &&
      readQuantization(quantization, configField(config, "expert_dtype"));
  const notes = named === undefined
    ? [
      `config.json names no dtype: what is not quantized is planned as bf16. Say another with --dtype`,
    ]
    : [];
  if (!packed) return { of: (param) => storedPlain(param, plain), notes };
  return {
    of: (param) => encodingOf(param, packed) ?? storedPlain(param, plain),
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

/** Every matrix that the configuration says is quantized, or experts only. */
function encodingOf(
  param: ParamFacts,
  quantization: Quantization,
): WeightEncoding | undefined {
  if (param.use !== "matrix") return undefined;
  const encoding = quantization(param.tensor.replace(/\.weight$/, ""));
  const packing = encoding && isFileDType(encoding.name)
    ? packingOf(encoding.name)
    : undefined;
  return packing?.file?.expertsOnly && param.expert === undefined
    ? undefined
    : encoding;
}
