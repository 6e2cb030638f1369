/** A config.json alone: what there is of a model before its weights are, for plans. */

import { type PublishedModel, publishedModel } from "../models/mod.ts";
import type { FileSystem } from "./files.ts";
import { readJsonObject } from "./json_file.ts";
import { readStoredAs, type StoredAs } from "./stored_as.ts";
import { type EncodingName, isFileDType } from "../spec/encoding.ts";

type Config = { readonly [key: string]: unknown };

/** A model to plan. */
export interface Configuration {
  readonly path: string;
  readonly published: PublishedModel;
  /** How its weights are stored, or would be as `dtype`. */
  storedAs(dtype?: EncodingName): StoredAs;
  readonly notes: readonly string[];
}

/** Architectures with parts besides the text model: the architecture of that part. */
const TEXT_PARTS: { readonly [architecture: string]: string } = {
  Llama4ForConditionalGeneration: "Llama4ForCausalLM",
};

/** Read a config.json. Throws DataError where it is none, or of a model that is not known. */
export async function openConfigurationFile(
  path: string,
  files: FileSystem,
): Promise<Configuration> {
  return configurationOf(await readJsonObject(path, files), path);
}

/** What a parsed config.json describes. */
export function configurationOf(config: Config, path: string): Configuration {
  const { quantization_config: _, ...model } = textPart(config);
  return {
    path,
    published: publishedModel(model),
    storedAs: (dtype) => readStoredAs(config, dtype),
    notes: config === model || config["text_config"] === undefined ? [] : [
      "only the text part of the model is planned; images and what reads them are left out",
    ],
  };
}

/** Whether a JSON document is a config.json, and not a plan. */
export function isConfiguration(document: Config): boolean {
  return document["architectures"] !== undefined ||
    document["model_type"] !== undefined;
}

/** Whether the weights of a configuration can be planned but not read yet. */
export function isPlannedOnly(config: Config): boolean {
  if ((config["quantization_config"] ?? undefined) === undefined) return false;
  const method = (config["quantization_config"] as Config)["quant_method"];
  return method !== "mxfp4" && !isFileDType(method as EncodingName);
}

function textPart(config: Config): Config {
  const names = config["architectures"];
  const name: unknown = Array.isArray(names) ? names[0] : undefined;
  const text = config["text_config"];
  if (
    typeof name !== "string" || !Object.hasOwn(TEXT_PARTS, name) ||
    typeof text !== "object" || text === null
  ) return config;
  return { ...text as Config, architectures: [TEXT_PARTS[name]] };
}
