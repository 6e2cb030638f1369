/** Trains a checkpoint's model on text. */

import { DataError } from "../../spec/errors.ts";
import { type Family, isFamily } from "../../models/mod.ts";
import {
  type Checkpoint,
  type FamilyOption,
  openConfiguration,
  openTokenizer,
  readGeneration,
} from "../checkpoint/checkpoint.ts";
import { configField } from "../checkpoint/config_field.ts";
import {
  completeConfig,
  familyConfiguration,
} from "../checkpoint/configuration.ts";
import { MAX_AXIS } from "../../spec/limits.ts";
import type { FileSystem } from "../files.ts";
import type { DeviceSharing } from "../devices.ts";
import { adapterParts } from "./adapter_parts.ts";
import { initialWeights } from "./initial.ts";
import { prepareFolder } from "./saved.ts";
import { stopTokens } from "../checkpoint/stop_tokens.ts";
import { textSettings, type TrainSettings } from "./settings.ts";
import { storedIn, storedWeights } from "./stored.ts";
import type { Chats } from "./chats.ts";
import { chatSource, textSource } from "./sources.ts";
import type { Task } from "./task.ts";
import type { Text } from "./text.ts";

/** Storage of tokens, and their readers. */
interface TokenStorage {
  readonly out?: string;
  readonly sharing?: DeviceSharing;
}

/** Data and options of training a checkpoint's model. */
export interface TextOptions extends TrainSettings, FamilyOption {
  /**
   * The texts, one document each, or conversations. With several processes and a folder, only rank 0 reads the texts.
   */
  readonly data: readonly Text[] | Chats;
  /** Validation texts. Conversations have their own. */
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
  options: TextOptions & TokenStorage,
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
  const { data } = options;
  const source = "samples" in data
    ? chatSource(data, options)
    : await textSource({ data, validation: options.validation }, {
      length,
      batch,
      seed,
      accumulate,
      tokenizer,
      files,
      folder: options.out,
      sharing: options.sharing ?? "shared",
      between: [...stop][0],
      tokenizerText: await files.readText(
        files.join(tokenizerFolder, "tokenizer.json"),
      ),
    });
  tokenizer.close();
  const { balance, recompute, lora } = options;
  const texts = {
    tokenizer: tokenizerFolder,
    generation: folder ?? tokenizerFolder,
  };
  const auxiliary = options.auxiliary ??
    Number(configField(config, "router_aux_loss_coef") ?? 0.01);
  const adapted = lora
    ? await adapterParts(folder, files, {
      ...options,
      lora,
      seed,
      published,
      texts,
    })
    : { published, parts: {} };
  return {
    ...source,
    model: adapted.published.build({
      ...source.bounds,
      training: { auxiliary, balance, recompute, objective: source.objective },
    }),
    loss: "loss",
    settings: textSettings({ ...options, seed, auxiliary }),
    weights: folder === undefined
      ? {}
      : await storedIn(folder, files, lora && "adapters"),
    where: folder ?? "the initial weights",
    initial: async (plan) => {
      const stored = folder !== undefined &&
        await storedWeights(folder, files);
      if (stored) return stored;
      return initialWeights(plan, {
        seed,
        deviation: Number(configField(config, "initializer_range") ?? 0.02),
      });
    },
    prepare: (out, plan) =>
      prepareFolder(out, files, { config, ...texts }, plan),
    ...adapted.parts,
  };
}
