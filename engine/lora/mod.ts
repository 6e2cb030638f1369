/** Low-rank adapters (LoRA): training, folders in PEFT's layout, and merging. */

export {
  adaptCheckpoint,
  adaptersOf,
  type LoraFolder,
  readLora,
  writeLoraConfig,
  writeLoraWeights,
} from "./folder.ts";
export {
  adaptedModel,
  type LoraSettings,
  recorded,
  trainedAdapters,
} from "./targets.ts";
export { mergeLora, type MergeOptions } from "./merge.ts";
