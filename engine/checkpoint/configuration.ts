/** A config.json without weights, for plans. */

import { isGguf } from "../gguf/folder.ts";
import { readFamily } from "../../models/family.ts";
import type { Family, PublishedModel } from "../../models/mod.ts";
import { publishedModel } from "../../models/published.ts";
import { DataError } from "../../spec/errors.ts";
import {
  type FamilyOption,
  readConfig,
  refuseUnknown,
  withQuantization,
} from "./checkpoint.ts";
import type { FileSystem } from "../files.ts";
import { readJsonObject } from "../json_file.ts";
import { withoutQuantization } from "./quantization_config.ts";
import { readStoredAs, type StoredAs } from "./stored_as.ts";
import type { EncodingName } from "../../spec/weights/encoding.ts";

type Config = { readonly [key: string]: unknown };

/** A model to plan. */
export interface Configuration {
  readonly path: string;
  readonly published: PublishedModel;
  /** Storage dtypes of its weights, or those with `dtype`. */
  storedAs(dtype?: EncodingName): StoredAs;
  readonly notes: readonly string[];
}

/** Architectures with parts besides the text model: the architecture of the text model. */
const TEXT_PARTS: { readonly [architecture: string]: string } = {
  Llama4ForConditionalGeneration: "Llama4ForCausalLM",
};

/** The model of a parsed config.json. Throws DataError for an unknown model. */
export function configurationOf(
  config: Config,
  path: string,
  { family }: FamilyOption = {},
): Configuration {
  const model = withoutQuantization(textPart(config));
  return {
    path,
    published: publishedModel(model, family),
    storedAs: (dtype) => readStoredAs(config, dtype),
    notes: (config["text_config"] ?? config["thinker_config"]) === undefined
      ? []
      : [
        "only the text part of the model is planned; images and what reads them are left out",
      ],
  };
}

/** The default configuration of a family, with f32 weights. */
export function familyConfiguration(
  family: Family,
  path: string,
): Configuration {
  return {
    path,
    published: readFamily(family, family.architectures[0]!, {}),
    storedAs: (dtype) => readStoredAs({ torch_dtype: "float32" }, dtype),
    notes: [],
  };
}

/** A complete config.json of a model. */
export function completeConfig(
  { architecture, fields }: PublishedModel,
): Config {
  return { architectures: [architecture], ...Object.fromEntries(fields) };
}

/** The configuration at a path: a config.json, or a folder with one and without weights. Undefined otherwise. */
export async function findConfiguration(
  path: string,
  files: FileSystem,
  options: FamilyOption = {},
): Promise<Configuration | undefined> {
  if (await files.stat(path) === "folder") {
    const names = await files.list(path);
    if (!names.includes("config.json")) return undefined;
    const file = files.join(path, "config.json");
    const config = await readConfig(path, files);
    const found = isGguf(path) ||
      names.some((name) => name.endsWith(".safetensors"));
    if (!options.family) await refuseUnknown(textPart(config), path, files);
    return found ? undefined : configurationOf(config, file, options);
  }
  if (!path.endsWith(".json")) return undefined;
  const document = await documentOf(path, files);
  if (document?.["architectures"] === undefined) return undefined;
  const config = /(^|[/\\])config\.json$/.test(path)
    ? await withQuantization(document, files.join(path, ".."), files)
    : document;
  return configurationOf(config, path, options);
}

/** The object in a JSON file. Undefined if it contains none. */
export async function documentOf(
  path: string,
  files: FileSystem,
): Promise<Config | undefined> {
  try {
    return await readJsonObject(path, files);
  } catch (error) {
    if (error instanceof DataError) return undefined;
    throw error;
  }
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
