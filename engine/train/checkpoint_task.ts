/** Trains a checkpoint's model on text. */

import { type HostTensor, reachedItems } from "../../runtime/mod.ts";
import { DataError } from "../../spec/errors.ts";
import { type Family, isFamily } from "../../models/mod.ts";
import {
  type Checkpoint,
  type FamilyOption,
  listWeightFiles,
  openConfiguration,
  openTokenizer,
  readGeneration,
} from "../checkpoint.ts";
import { completeConfig, familyConfiguration } from "../configuration.ts";
import { MAX_AXIS } from "../../spec/limits.ts";
import type { FileSystem } from "../files.ts";
import type { Tensors } from "../run.ts";
import type { DeviceSharing } from "../devices.ts";
import { readTensors } from "../tensors.ts";
import { initialWeights } from "./initial.ts";
import { prepareFolder } from "./saved.ts";
import { stopTokens } from "../stop_tokens.ts";
import type { TrainSettings } from "./settings.ts";
import { hasWeights, storedIn } from "./stored.ts";
import type { BatchPlace, Task, WeighedBatch } from "./task.ts";
import { type Sequence, type Text, TextRows } from "./text.ts";
import { openTokens } from "./tokens.ts";

/** Storage of tokens, and their readers. */
interface TokenPlace {
  readonly out?: string;
  readonly sharing?: DeviceSharing;
}

/** Data and options of training a checkpoint's model. */
export interface TextOptions extends TrainSettings, FamilyOption {
  /** The texts, one document each. With several processes and a folder, only rank 0 reads them. */
  readonly data: readonly Text[];
  /** Validation texts. */
  readonly validation?: readonly Text[];
  /** Folder of the tokenizer. Default: that of the model. */
  readonly tokenizer?: string;
}

/** The trained model: a folder with config.json, or the defaults of a family. */
interface Origin extends Pick<Checkpoint, "published" | "stop" | "config"> {
  readonly folder: string | undefined;
}

async function originOf(
  what: string | Family,
  files: FileSystem,
  { family, tokenizer }: Pick<TextOptions, "family" | "tokenizer">,
): Promise<Origin> {
  if (!isFamily(what)) return await openConfiguration(what, files, { family });
  const { published } = familyConfiguration(what, "");
  const generation = tokenizer === undefined
    ? {}
    : await readGeneration(tokenizer, files);
  const eos = generation["eos_token_id"];
  return {
    folder: undefined,
    published,
    stop: stopTokens({}, generation),
    config: {
      ...completeConfig(published),
      torch_dtype: "float32",
      ...eos === undefined ? {} : { eos_token_id: eos },
    },
  };
}

/** The task of a checkpoint folder or a family. Without weights, they are random. */
export async function checkpointTask(
  what: string | Family,
  files: FileSystem,
  options: TextOptions & TokenPlace,
): Promise<Task> {
  const { batch, length, seed = 0, accumulate = 1 } = options;
  const origin = await originOf(what, files, options);
  const { published, stop, config, folder } = origin;
  const tokenizerFolder = options.tokenizer ?? folder;
  if (tokenizerFolder === undefined) {
    throw new DataError(
      "Cannot train on text: a family has no tokenizer. Give the folder of one with --tokenizer",
    );
  }
  const tokenizer = await openTokenizer(tokenizerFolder, files);
  if (tokenizer === undefined) {
    throw new DataError(
      `Cannot train on text: '${tokenizerFolder}' has no tokenizer.json. Copy one there, or give the folder of another with --tokenizer`,
    );
  }
  const { maxPositions } = published.decoder;
  if (length > maxPositions) {
    throw new DataError(
      `Cannot train on sequences of ${length} tokens: the model has ${maxPositions} positions. Use shorter ones`,
    );
  }
  if (batch * length > MAX_AXIS) {
    throw new DataError(
      `Cannot train on batches of ${
        batch * length
      } tokens: a step has at most ${MAX_AXIS}. Use smaller ones, and more of them with --accumulate`,
    );
  }
  const tokensOf = async (texts: readonly Text[]) =>
    await openTokens(texts, {
      tokenizer,
      between: [...stop][0],
      tokenizerText: await files.readText(
        files.join(tokenizerFolder, "tokenizer.json"),
      ),
    }, { files, folder: options.out, sharing: options.sharing ?? "shared" });
  const tokens = await tokensOf(options.data);
  const rows = new TextRows(tokens.row, { length, seed });
  const held = options.validation && await tokensOf(options.validation);
  tokenizer.close();
  const validation = held && new TextRows(held.row, { length, seed });
  const { optimizer, schedule, clipNorm, balance, recompute } = options;
  const { biasUpdate, dtype } = options;
  const auxiliary = options.auxiliary ??
    Number(config["router_aux_loss_coef"] ?? 0.01);
  return {
    model: published.build({
      maxTokens: batch * length,
      maxSequences: batch,
      maxContext: length,
      training: { auxiliary, balance, recompute },
    }),
    loss: "loss",
    settings: {
      optimizer,
      schedule,
      batch,
      length,
      seed,
      auxiliary,
      ...accumulate === 1 ? {} : { accumulate },
      ...balance === undefined ? {} : { balance },
      ...biasUpdate === undefined ? {} : { biasUpdate },
      ...recompute ? { recompute } : {},
      ...dtype === undefined ? {} : { dtype },
      ...clipNorm === undefined ? {} : { clipNorm },
    },
    weights: folder === undefined ? {} : await storedIn(folder, files),
    text: tokens.digest,
    taken: batch * accumulate,
    tokens: batch * accumulate * length,
    // All sequences of the text; the last batch may have fewer.
    validation: validation && {
      count: Math.ceil(validation.rows / batch),
      at: (index, place) =>
        batchOf(validation, place, {
          first: index * batch,
          count: Math.min(batch, validation.rows - index * batch),
        }),
    },
    where: folder ?? "the initial weights",
    initial: async (plan) =>
      folder !== undefined && await storedWeights(folder, files) ||
      initialWeights(plan, {
        seed,
        deviation: Number(config["initializer_range"] ?? 0.02),
      }),
    batch: (index, place) =>
      batchOf(rows, place, { first: index * batch, count: batch }),
    prepare: (out, plan) =>
      prepareFolder(out, files, {
        config,
        tokenizer: tokenizerFolder,
        generation: folder ?? tokenizerFolder,
      }, plan),
    close: async () => {
      await rows.close();
      await validation?.close();
    },
  };
}

/** The weights of a folder, widened to f32. Undefined if it has none. */
async function storedWeights(
  folder: string,
  files: FileSystem,
): Promise<Tensors | undefined> {
  if (!await hasWeights(folder, files)) return undefined;
  const read: { [name: string]: HostTensor } = {};
  for (const path of await listWeightFiles(folder, files)) {
    Object.assign(read, await readTensors(path, files));
  }
  return read;
}

/** Sequences as inputs of a decoder; only those of this process's ranks are read. */
async function batchOf(
  rows: TextRows,
  { plan, program, ranks }: BatchPlace,
  { first, count }: { readonly first: number; readonly count: number },
): Promise<WeighedBatch> {
  const { length } = rows;
  const layout = {
    sequence: numbers(count * length, (i) => Math.floor(i / length)),
    position: numbers(count * length, (i) => i % length),
  };
  const items = ranks.map((rank) =>
    reachedItems(plan, rank, { program, input: "ids", inputs: layout })
  );
  const whole = items.includes(undefined);
  const reached = new Set(
    items.flatMap((some) => [...some ?? []].map((i) => Math.floor(i / length))),
  );
  const ids = numbers(count * length, () => 0);
  const labels = numbers(count * length, () => 0);
  for (let i = 0; i < count; i++) {
    if (!whole && !reached.has(i)) continue;
    const row: Sequence = await rows.at(first + i);
    ids.data.set(row.ids, i * length);
    labels.data.set(row.labels, i * length);
  }
  return { inputs: { ...layout, ids, labels }, counted: count * length };
}

function numbers(count: number, of: (i: number) => number): HostTensor {
  const data = Int32Array.from({ length: count }, (_, i) => of(i));
  return { dtype: "i32", shape: [count], data };
}
