/** Parts of tasks that train adapters of constant weights. */

import type { PublishedModel } from "../../models/mod.ts";
import { DataError } from "../../spec/errors.ts";
import type { Plan } from "../../spec/plan/plan.ts";
import { listWeightFiles } from "../checkpoint/checkpoint.ts";
import type { FileSystem } from "../files.ts";
import {
  adaptedModel,
  type LoraSettings,
  recorded,
  trainedAdapters,
  writeLoraConfig,
  writeLoraWeights,
} from "../lora/mod.ts";
import { initialWeights } from "./initial.ts";
import { prepareTexts, type Sources } from "./saved.ts";
import type { TrainSettings } from "./settings.ts";
import { hasWeights } from "./stored.ts";
import type { Task } from "./task.ts";

/** Options of adapters. */
export interface AdapterOptions extends Pick<TrainSettings, "biasUpdate"> {
  readonly lora: LoraSettings;
  readonly seed: number;
  /** The model without adapters. */
  readonly published: PublishedModel;
  /** Sources of the tokenizer and of generation_config.json. */
  readonly texts: Omit<Sources, "config">;
}

/** A model with adapters, and the parts of a task that trains them. */
export interface AdapterParts {
  readonly published: PublishedModel;
  readonly parts: Pick<
    Task,
    "trained" | "constants" | "initial" | "saved" | "prepare"
  >;
}

/**
 * The parts of a task that trains adapters of the weights in a folder. Throws DataError for a model without weights,
 * and for settings that change other parameters.
 */
export async function adapterParts(
  folder: string | undefined,
  files: FileSystem,
  { lora, seed, published, texts, biasUpdate }: AdapterOptions,
): Promise<AdapterParts> {
  if (biasUpdate !== undefined) {
    throw new DataError(
      "Cannot train adapters with a bias update: selection biases are constant then. Leave one of them out",
    );
  }
  if (folder === undefined || !await hasWeights(folder, files)) {
    throw new DataError(
      "Cannot train adapters of random weights: the adapters of another start would not fit. Give a checkpoint with weights",
    );
  }
  const { adapters, parameters } = recorded(trainedAdapters(lora));
  const parts: AdapterParts["parts"] = {
    trained: "adapters",
    constants: await listWeightFiles(folder, files),
    initial: (plan: Plan) =>
      // Adapters have no normally distributed values.
      Promise.resolve(
        initialWeights(plan, { seed, deviation: 0, trained: "adapters" }),
      ),
    saved: async (out) =>
      await writeLoraWeights(out, files, await listWeightFiles(out, files)),
    prepare: async (out) => {
      await prepareTexts(out, files, texts);
      await writeLoraConfig(out, files, {
        ...lora,
        base: folder,
        parameters,
      });
    },
  };
  return { published: adaptedModel(published, adapters), parts };
}
