/** A checkpoint folder: its configuration, its weight files, its tokenizer. */

import type { Family, PublishedModel } from "../../models/mod.ts";
import {
  isUnknown,
  publishedModel,
  unknownError,
} from "../../models/published.ts";
import { ggufParts, isGguf } from "../gguf/folder.ts";
import { DataError } from "../../spec/errors.ts";
import type { Grammars } from "../text/grammar.ts";
import type { FileSystem } from "../files.ts";
import { parseJsonObject, readJsonObject } from "../json_file.ts";
import { configField } from "./config_field.ts";
import {
  readQuantization,
  withoutQuantization,
} from "./quantization_config.ts";
import { shown } from "../../spec/shown.ts";
import { sum } from "../../spec/sum.ts";
import { stopTokens } from "./stop_tokens.ts";
import { withTensors } from "./tensors.ts";
import type { Tokenizer } from "../text/tokenizer.ts";
import { createGrammars } from "../untrusted/grammars.ts";
import { createTokenizer } from "../untrusted/tokenizer.ts";

type JsonObject = { readonly [key: string]: unknown };

/** File that lists the weight files of a sharded checkpoint. */
export const WEIGHT_INDEX = "model.safetensors.index.json";

/** File of ModelOpt that describes the quantization. */
export const QUANTIZATION_FILE = "hf_quant_config.json";

/** Optional files of a checkpoint besides configuration and weights. */
export const COMPANION_FILES = [
  "tokenizer.json",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "generation_config.json",
  "chat_template.jinja",
  "chat_template.json",
] as const;

/** The family that reads a config.json. */
export interface FamilyOption {
  /** A family given by the user. Default: the built-in ones. */
  readonly family?: Family | undefined;
}

/** Contents of a checkpoint folder. Weights and tokenizer are not yet read. */
export interface Checkpoint {
  readonly folder: string;
  readonly published: PublishedModel;
  /** Stop tokens. */
  readonly stop: ReadonlySet<number>;
  /** config.json. */
  readonly config: JsonObject;
  /** Default number of new tokens, from generation_config.json. */
  readonly maxNewTokens: number | undefined;
  /** Safetensors files. */
  readonly weightFiles: readonly string[];
}

/** Reads the configuration of a checkpoint folder. */
export async function openCheckpoint(
  folder: string,
  files: FileSystem,
  options: FamilyOption = {},
): Promise<Checkpoint> {
  return {
    ...await openConfiguration(folder, files, options),
    weightFiles: await listWeightFiles(folder, files),
  };
}

/** The configuration of low-rank adapters in PEFT's layout. */
export const ADAPTER_CONFIG = "adapter_config.json";

/** Reads the configuration of a folder that may have no weights. */
export async function openConfiguration(
  folder: string,
  files: FileSystem,
  { family }: FamilyOption = {},
): Promise<Omit<Checkpoint, "weightFiles">> {
  const names = new Set(await files.list(folder));
  if (!names.has("config.json")) {
    if (names.has(ADAPTER_CONFIG)) {
      throw new DataError(
        `Cannot read '${folder}': it has low-rank adapters and no model. Give their checkpoint, and this folder with --lora`,
      );
    }
    const found = [...names].filter(isGguf).sort()[0];
    throw new DataError(
      `Cannot read '${folder}': it has no config.json. Give ${
        found === undefined
          ? "a checkpoint folder, a model file or a plan"
          : `a GGUF file, such as '${files.join(folder, found)}'`
      }`,
    );
  }
  const config = await readConfig(folder, files);
  if (!family) await refuseUnknown(config, folder, files);
  const generation = await readGeneration(folder, files);
  const maxNewTokens = generation["max_new_tokens"];
  return {
    folder,
    config,
    published: publishedModel(modelOf(config), family),
    stop: stopTokens(config, generation),
    maxNewTokens: typeof maxNewTokens === "number" && maxNewTokens >= 1
      ? Math.floor(maxNewTokens)
      : undefined,
  };
}

/** Throws DataError for an architecture that is not built in. The message has the facts that the folder states. */
export async function refuseUnknown(
  config: JsonObject,
  folder: string,
  files: FileSystem,
): Promise<void> {
  if (!isUnknown(config)) return;
  const contents = await describeFiles(folder, files).catch((error) => {
    // Files that cannot be read say nothing.
    if (error instanceof DataError) return undefined;
    throw error;
  });
  throw unknownError(withoutQuantization(config), contents);
}

/** A sentence on the size of a model, from the headers of its files, or from their index. */
async function describeFiles(
  folder: string,
  files: FileSystem,
): Promise<string | undefined> {
  const format = (n: number) => new Intl.NumberFormat("en").format(n);
  const names = new Set(await files.list(folder));
  if ([...names].some((name) => name.endsWith(".safetensors"))) {
    const paths = await listWeightFiles(folder, files);
    return await withTensors(paths, files, (tensors) => {
      // The sources of a view are counted once, with the first view of them.
      const sources = new Set(
        [...tensors.values()].flatMap(({ of = [] }) => of),
      );
      const seen = new Set<string>();
      const isFirst = (name: string) => seen.size < seen.add(name).size;
      const counted = [...tensors.values()].filter(({ name, of, packed }) =>
        packed !== undefined
          ? isFirst(of?.[0] ?? name)
          : of === undefined && !sources.has(name)
      );
      const parameters = sum(
        counted.map(({ shape }) => shape.reduce((n, size) => n * size, 1)),
      );
      return Promise.resolve(
        `Its ${format(counted.length)} tensors have ${
          format(parameters)
        } parameters`,
      );
    });
  }
  if (!names.has(WEIGHT_INDEX)) return undefined;
  const index = await readJsonObject(files.join(folder, WEIGHT_INDEX), files);
  const { total_parameters: parameters, total_size: bytes } =
    (index["metadata"] ?? {}) as JsonObject;
  if (typeof parameters === "number") {
    return `Its index counts ${format(parameters)} parameters`;
  }
  return typeof bytes === "number"
    ? `Its index counts ${format(bytes)} bytes of tensors`
    : undefined;
}

/** config.json of a folder, with the quantization of hf_quant_config.json if only that file names it (ModelOpt). */
export async function readConfig(
  folder: string,
  files: FileSystem,
): Promise<JsonObject> {
  const file = files.join(folder, "config.json");
  return await withQuantization(
    await readJsonObject(file, files),
    folder,
    files,
  );
}

/** A config.json of a folder, with the quantization of the folder's hf_quant_config.json if it names none. */
export async function withQuantization(
  config: JsonObject,
  folder: string,
  files: FileSystem,
): Promise<JsonObject> {
  const path = files.join(folder, QUANTIZATION_FILE);
  return configField(config, "quantization_config") !== undefined ||
      await files.stat(path) === undefined
    ? config
    : {
      ...config,
      quantization_config: {
        quant_method: "modelopt",
        ...await readJsonObject(path, files),
      },
    };
}

/** generation_config.json; an empty object if it does not exist. */
export async function readGeneration(
  folder: string,
  files: FileSystem,
): Promise<JsonObject> {
  const path = files.join(folder, "generation_config.json");
  return await files.stat(path) === undefined
    ? {}
    : await readJsonObject(path, files);
}

/** The configuration of the model. Throws DataError for an unknown quantization. */
function modelOf(config: JsonObject): JsonObject {
  const quantization = configField(config, "quantization_config");
  if (typeof quantization === "object" && quantization !== null) {
    readQuantization(quantization as JsonObject);
  }
  return withoutQuantization(config);
}

/**
 * The weight files of a checkpoint: a GGUF file with its other parts, or the safetensors files of a folder: those of
 * its index if all exist, else model.safetensors, else all of them.
 */
export async function listWeightFiles(
  folder: string,
  files: FileSystem,
): Promise<string[]> {
  if (isGguf(folder)) return ggufParts(folder);
  const names = new Set(await files.list(folder));
  const single = names.has("model.safetensors");
  if (names.has(WEIGHT_INDEX)) {
    const shards = await indexedFiles(folder, files);
    const paths = shards.map((shard) => files.join(folder, shard));
    const found = await Promise.all(paths.map((path) => files.stat(path)));
    const missing = shards.find((_, i) => found[i] === undefined);
    if (missing === undefined) return paths;
    if (!single) {
      throw new DataError(
        `Cannot read '${folder}': '${missing}', which ${WEIGHT_INDEX} names, is missing. Copy it there`,
      );
    }
  }
  if (single) return [files.join(folder, "model.safetensors")];
  const all = [...names].filter((name) => name.endsWith(".safetensors")).sort();
  if (all.length === 0) {
    throw new DataError(
      `Cannot read '${folder}': it has no safetensors file. Copy model.safetensors there`,
    );
  }
  return all.map((name) => files.join(folder, name));
}

/** Names of the weight files in the index of a folder; they may be in subfolders. */
export async function indexedFiles(
  folder: string,
  files: Pick<FileSystem, "join" | "readText">,
): Promise<string[]> {
  const path = files.join(folder, WEIGHT_INDEX);
  const text = await files.readText(path);
  const map = parseJsonObject(text, path)["weight_map"];
  const shards: unknown[] = typeof map === "object" && map !== null
    ? [...new Set(Object.values(map))]
    : [];
  if (shards.length === 0 || !shards.every((s) => typeof s === "string")) {
    throw new DataError(
      `Cannot read '${path}': it has no 'weight_map' of file names. Copy it again`,
    );
  }
  const outside = shards.find((shard) =>
    shard.split(/[/\\]/).some((part) => part === "" || part === "..")
  );
  if (outside === undefined) return shards;
  throw new DataError(
    `Cannot read '${path}': it names '${
      shown(outside)
    }', which is not in its folder. Copy it again`,
  );
}

/** The tokenizer of a checkpoint. Undefined if the folder has none. */
export async function openTokenizer(
  folder: string,
  files: FileSystem,
): Promise<Tokenizer | undefined> {
  const read = await readTokenizer(folder, files);
  return read && await createTokenizer(read, { folder, size: read.size });
}

/** Grammars for the tokens of a checkpoint. Undefined if the folder has no tokenizer. */
export async function openGrammars(
  folder: string,
  files: FileSystem,
  options: {
    /** Number of logits. */
    readonly vocabulary: number;
    readonly stop: ReadonlySet<number>;
  },
): Promise<Grammars | undefined> {
  const read = await readTokenizer(folder, files);
  return read && createGrammars({ ...read, ...options });
}

/** The contents of tokenizer.json, its number of characters, and tokenizer_config.json. */
async function readTokenizer(
  folder: string,
  files: FileSystem,
): Promise<
  | {
    readonly tokenizer: object;
    readonly config: { readonly [key: string]: unknown };
    readonly size: number;
  }
  | undefined
> {
  const path = files.join(folder, "tokenizer.json");
  if (await files.stat(path) === undefined) return undefined;
  const config = files.join(folder, "tokenizer_config.json");
  const text = await files.readText(path);
  const tokenizer = parseJsonObject(text, path);
  checkTokenizerModel(tokenizer["model"], folder);
  return {
    tokenizer,
    config: await files.stat(config) === undefined
      ? {}
      : await readJsonObject(config, files),
    size: text.length,
  };
}

/** Types of models of tokenizers. A file without a type is of an old version, and its model shows the type. */
const TOKENIZER_MODELS: readonly unknown[] = [
  "BPE",
  "Unigram",
  "WordPiece",
  "WordLevel",
  undefined,
];

/** Throws DataError for a type of model that would be read as another one. */
function checkTokenizerModel(model: unknown, folder: string): void {
  const { type } = (model ?? {}) as { readonly type?: unknown };
  if (TOKENIZER_MODELS.includes(type)) return;
  throw new DataError(
    `Cannot read the tokenizer of '${folder}': its model has the type '${
      shown(String(type))
    }', and only BPE, Unigram, WordPiece and WordLevel are known. Check tokenizer.json`,
  );
}
