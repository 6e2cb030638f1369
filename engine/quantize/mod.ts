/** Quantizes a checkpoint: a GGUF file, or a folder of safetensors files. */

import { DataError } from "../../spec/errors.ts";
import { checkOptions } from "../../spec/options.ts";
import { sum } from "../../spec/sum.ts";
import {
  type Checkpoint,
  COMPANION_FILES,
  openCheckpoint,
  WEIGHT_INDEX,
} from "../checkpoint/checkpoint.ts";
import { configField } from "../checkpoint/config_field.ts";
import { checkColumnOrders } from "../encodings/gptq.ts";
import type { FileSystem } from "../files.ts";
import { checkNew, removingOnFailure } from "../new_folder.ts";
import { keysOf } from "../gguf/config.ts";
import { isGguf } from "../gguf/folder.ts";
import { namesPredictor, numberedName } from "../gguf/names.ts";
import type { GgufValues } from "../gguf/write.ts";
import { tokenizerKeys } from "../gguf/write_tokenizer.ts";
import { readJsonObject } from "../json_file.ts";
import { QUANTIZE_OPTIONS } from "../option_names.ts";
import { withoutQuantization } from "../checkpoint/quantization_config.ts";
import { withTensors } from "../checkpoint/tensors.ts";
import { type Encoder, SAME_THREAD } from "./encode.ts";
import { fileBytes, filesOf, FOLDER_FORMATS, unchanged } from "./folder.ts";
import { partsOf } from "./fused.ts";
import {
  addedVector,
  architectureFor,
  ggufBodyBytes,
  ggufBytes,
  ggufTensorsOf,
  type HeadSizes,
  type Importance,
} from "./gguf_file.ts";
import { type SourceTensor, sourceTensors } from "./source.ts";
import {
  QUANTIZE_TARGETS,
  type QuantizeTarget,
  type QuantizeTargetName,
  type Rule,
} from "../../spec/weights/quantize_targets.ts";

/** Options of quantizing a checkpoint. */
export interface QuantizeOptions {
  readonly to: QuantizeTargetName;
  /** `FILE.gguf`, or a folder. */
  readonly out: string;
  /** Rules that precede those of the format. */
  readonly rules?: readonly Rule[];
  /** Weights of the columns of matrices. Default: equal weights. */
  readonly importance?: Importance;
  /** Encodes rows. The result does not depend on it. Default: on this thread. */
  readonly encoder?: Encoder;
  /** Called with bytes of the result. */
  readonly onProgress?: (done: number, total: number) => void;
}

/** The result of quantizing. */
export interface Quantized {
  /** Bytes of tensors in the checkpoint, and in the result. */
  readonly before: number;
  readonly after: number;
  /** Bytes of tensors by type. */
  readonly types: { readonly [type: string]: number };
}

/** Maximum bytes of a safetensors file. */
const FILE_BYTES = 4 * 2 ** 30;

/**
 * Quantizes a checkpoint. Tensors are read, encoded and written piece by piece, so the checkpoint may be larger than
 * memory. If writing fails, `out` has no files. Throws DataError for an unknown option, for a model that the format
 * cannot represent, and if `out` exists, unless it is an empty folder.
 */
export async function quantizeCheckpoint(
  folder: string,
  files: FileSystem,
  options: QuantizeOptions,
): Promise<Quantized> {
  checkOptions("quantize", options, QUANTIZE_OPTIONS);
  const { out, to } = options;
  const target: QuantizeTarget = QUANTIZE_TARGETS[to];
  const kind = isGguf(out) ? "file" : "folder";
  if (!target.writes.includes(kind)) {
    throw new DataError(
      `Cannot quantize to ${to} as '${out}': the format is written to a ${
        target.writes[0] === "file"
          ? "GGUF file. Give FILE.gguf"
          : "folder. Give one"
      }`,
    );
  }
  await checkNew(out, files, kind);
  const checkpoint = await openCheckpoint(folder, files);
  const filed = await storedBytes(checkpoint.weightFiles, files);
  return await withTensors(
    checkpoint.weightFiles,
    files,
    async (directory) => {
      const { published } = checkpoint;
      const tensors = sourceTensors(directory, published, {
        where: folder,
        predictor: kind === "file" &&
          namesPredictor(architectureFor(published.architecture).row),
      });
      await checkColumnOrders(directory);
      const write = kind === "file" ? writeFile : writeFolder;
      const types = await write({ checkpoint, tensors }, files, options);
      return {
        before: bytesBefore(tensors, filed),
        after: sum(Object.values(types)),
        types,
      };
    },
  );
}

/** Bytes of the tensors of files, by name. */
async function storedBytes(
  paths: readonly string[],
  files: FileSystem,
): Promise<ReadonlyMap<string, number>> {
  return await withTensors(
    paths,
    files,
    (tensors) =>
      Promise.resolve(
        new Map([...tensors].map(([name, { bytes }]) => [name, bytes])),
      ),
    { views: false },
  );
}

/** Adds up the bytes of tensors in files. The sources of several views count once. */
function bytesBefore(
  tensors: readonly SourceTensor[],
  filed: ReadonlyMap<string, number>,
): number {
  const sources = new Set(tensors.flatMap(({ of = [] }) => of));
  return sum([
    ...tensors.flatMap(({ of, bytes }) => of ? [] : [bytes]),
    ...[...sources].map((name) => filed.get(name)!),
  ]);
}

/** A checkpoint with its tensors. */
interface Source {
  readonly checkpoint: Checkpoint;
  readonly tensors: readonly SourceTensor[];
}

/** Adds up bytes by type. */
function addedUp(
  parts: readonly { readonly type: string; readonly bytes: number }[],
): { readonly [type: string]: number } {
  const types: { [type: string]: number } = {};
  for (const { type, bytes } of parts) {
    types[type] = (types[type] ?? 0) + bytes;
  }
  return types;
}

async function writeFile(
  { checkpoint, tensors }: Source,
  files: FileSystem,
  options: QuantizeOptions,
): Promise<Quantized["types"]> {
  const { published, config } = checkpoint;
  const { to, out, rules = [], importance = () => undefined } = options;
  const { name, row } = architectureFor(published.architecture);
  const target: QuantizeTarget = QUANTIZE_TARGETS[to];
  const complete = {
    ...Object.fromEntries(published.fields),
    ...config,
    ...config["text_config"] as typeof config | undefined,
  };
  const sizes = headSizes(complete);
  const added = row.added?.(new Map(Object.entries(complete))) ?? {};
  const { layers } = published.decoder;
  const numbered = tensors.map((tensor) => ({
    ...tensor,
    name: numberedName(row, tensor.name, layers),
  }));
  const parts = [
    ...ggufTensorsOf(numbered, row, {
      rules,
      defaults: target.rules,
      sizes,
    }),
    ...Object.entries(added).flatMap(([name, elements]) =>
      elements ? [addedVector(name, elements)] : []
    ),
  ];
  const keys: GgufValues = {
    ...keysOf(complete, {
      name,
      row,
      predictors: parts.some(({ name }) => name.includes(".nextn.")) ? 1 : 0,
    }),
    ...target.fileType === undefined
      ? {}
      : { "general.file_type": { u32: target.fileType } },
    ...await tokenizerOf(checkpoint, files),
  };
  const total = ggufBodyBytes(parts);
  let done = 0;
  await files.write(
    out,
    ggufBytes(keys, parts, {
      importance,
      sizes,
      encoder: options.encoder ?? SAME_THREAD,
      onProgress: (bytes) => options.onProgress?.(done += bytes, total),
    }),
  );
  return addedUp(
    parts.map(({ stored, bytes }) => ({ type: stored.name, bytes })),
  );
}

function headSizes(
  config: { readonly [field: string]: unknown },
): HeadSizes {
  const number = (field: string) => Number(config[field]);
  const heads = number("num_attention_heads");
  return {
    heads: {
      head_count: heads,
      head_count_kv: Number(config["num_key_value_heads"] ?? heads),
    },
    groups: Number(config["mamba_n_groups"] ?? config["n_groups"]),
    latent: {
      keys: number("qk_nope_head_dim"),
      values: number("v_head_dim"),
    },
    valueHeads: {
      keyHeads: number("linear_num_key_heads"),
      valueHeads: number("linear_num_value_heads"),
      keyDim: number("linear_key_head_dim"),
      valueDim: number("linear_value_head_dim"),
    },
  };
}

async function tokenizerOf(
  { folder, config, published, stop }: Checkpoint,
  files: FileSystem,
): Promise<GgufValues> {
  const path = (name: string) => files.join(folder, name);
  const names = new Set(await files.list(folder));
  if (!names.has("tokenizer.json")) return {};
  const settings = names.has("tokenizer_config.json")
    ? await readJsonObject(path("tokenizer_config.json"), files)
    : {};
  const inside = settings["chat_template"];
  const template = names.has("chat_template.jinja")
    ? await files.readText(path("chat_template.jinja"))
    : typeof inside === "string"
    ? inside
    : undefined;
  const id = (name: string) => {
    const [first] = [configField(config, `${name}_token_id`)].flat();
    return typeof first === "number" && first >= 0 ? first : undefined;
  };
  const [eos, eot, eom] = new Set([id("eos") ?? [], ...stop].flat());
  return tokenizerKeys({
    tokenizer: await readJsonObject(path("tokenizer.json"), files),
    config: settings,
    template,
    ids: { bos: id("bos"), eos, eot, eom, pad: id("pad") },
    vocabulary: published.decoder.vocabulary,
  });
}

/**
 * Returns packed experts in one tensor as a matrix each, if the format does not store them as they are, and the fields
 * of config.json that say so. A decoded tensor would have its last axes in another order than the model.
 */
function withSeparateExperts(
  { checkpoint: { published, config }, tensors }: Source,
  to: QuantizeTargetName,
): {
  readonly tensors: readonly SourceTensor[];
  readonly fields: { readonly [field: string]: unknown };
} {
  const isPacked = ({ shape, stored }: SourceTensor) =>
    stored !== undefined && stored.format !== to && shape.length > 2;
  if (!tensors.some(isPacked)) return { tensors, fields: {} };
  const { row } = architectureFor(published.architecture);
  const { constants = {}, equivalents = {} } = row;
  const sizes = headSizes(config);
  const held = {};
  return {
    tensors: tensors.flatMap((tensor) => partsOf(tensor, row, { sizes, held })),
    fields: Object.fromEntries(
      Object.keys(equivalents).map((field) => [field, constants[field]]),
    ),
  };
}

async function writeFolder(
  source: Source,
  files: FileSystem,
  options: QuantizeOptions,
): Promise<Quantized["types"]> {
  const { to, out, onProgress, rules = [] } = options;
  const { importance = () => undefined, encoder = SAME_THREAD } = options;
  const { config, folder } = source.checkpoint;
  const { tensors, fields } = withSeparateExperts(source, to);
  if (rules.length > 0) {
    throw new DataError(
      `Cannot use rules with '${out}': types of tensors are those of GGUF files. Give FILE.gguf for --out`,
    );
  }
  const format = FOLDER_FORMATS[to as keyof typeof FOLDER_FORMATS];
  const isTaken = (tensor: SourceTensor) =>
    tensor.stored?.format === to || format.takes(tensor);
  if (!tensors.some(isTaken)) {
    throw new DataError(
      `Cannot quantize '${folder}' to ${to}: it has no matrix that the format stores. Choose another format`,
    );
  }
  const matrices = tensors.map((tensor) =>
    tensor.stored?.format === to
      ? tensor.stored.tensors.map(unchanged)
      : format.takes(tensor)
      ? format.encode(tensor, { importance, encoder })
      : [unchanged(tensor)]
  );
  const split = filesOf(matrices, FILE_BYTES);
  const nameOf = (i: number) =>
    split.length === 1
      ? "model.safetensors"
      : `model-${number(i + 1)}-of-${number(split.length)}.safetensors`;
  const total = matrices.flat().reduce((sum, { bytes }) => sum + bytes, 0);
  let done = 0;
  await files.makeFolder(out);
  await removingOnFailure(files, async (write) => {
    const path = (name: string) => files.join(out, name);
    for (const [i, part] of split.entries()) {
      await write(
        path(nameOf(i)),
        fileBytes(part, {
          atOnce: encoder.atOnce,
          onProgress: (bytes) => onProgress?.(done += bytes, total),
        }),
      );
    }
    const text = (name: string, value: object) =>
      write(path(name), [
        new TextEncoder().encode(`${JSON.stringify(value, null, 2)}\n`),
      ]);
    if (split.length > 1) {
      await text(WEIGHT_INDEX, {
        metadata: { total_size: total },
        weight_map: Object.fromEntries(
          split.flatMap((part, i) => part.map(({ name }) => [name, nameOf(i)])),
        ),
      });
    }
    for (const name of COMPANION_FILES) {
      if (await files.stat(files.join(folder, name)) === undefined) continue;
      const copied = await files.readText(files.join(folder, name));
      await write(path(name), [new TextEncoder().encode(copied)]);
    }
    const left = tensors.filter((tensor) =>
      !isTaken(tensor) && tensor.shape.length > 1
    );
    // The file that marks a folder as a checkpoint is written last.
    await text("config.json", {
      ...withoutQuantization(config),
      ...fields,
      quantization_config: {
        ...format.config,
        modules_to_not_convert: left.map(({ name }) =>
          name.replace(/\.weight$/, "")
        ),
      },
    });
  });
  return addedUp(
    matrices.flatMap((made, i) => {
      const name = isTaken(tensors[i]!) ? to : undefined;
      return made.map(({ dtype, bytes }) => ({
        type: (name ?? dtype).toUpperCase(),
        bytes,
      }));
    }),
  );
}

function number(n: number): string {
  return String(n).padStart(5, "0");
}
