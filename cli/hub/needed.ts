/** Selection of the files that a checkpoint folder is read from. */

import {
  COMPANION_FILES,
  indexedFiles,
  QUANTIZATION_FILE,
  WEIGHT_INDEX,
} from "../../engine/checkpoint/checkpoint.ts";
import type { FileSystem } from "../../engine/files.ts";
import { ggufParts } from "../../engine/gguf/folder.ts";
import { DataError } from "../../spec/errors.ts";
import { shown } from "../../spec/shown.ts";
import type { HubName } from "../hub_name.ts";
import type { HubFile } from "./client.ts";

const SMALL: readonly string[] = [
  "config.json",
  QUANTIZATION_FILE,
  ...COMPANION_FILES,
  WEIGHT_INDEX,
];

/** Returns the existing small files of a model: configuration, tokenizer and weight index. */
export function smallFiles(
  all: readonly HubFile[],
  name: HubName,
): readonly HubFile[] {
  if (name.file !== undefined) return [];
  const found = all.filter(({ path }) => SMALL.includes(path));
  if (found.some(({ path }) => path === "config.json")) return found;
  const gguf = all.map(({ path }) => path)
    .filter((path) => path.endsWith(".gguf"));
  throw new DataError(
    gguf.length === 0
      ? `Cannot use '${name.repo}': it has no config.json. Choose a model in the format of transformers`
      : `Cannot use '${name.repo}': it has GGUF files and no config.json. Name one of them, such as ${name.repo}/${
        gguf[0]
      }`,
  );
}

/**
 * Returns the names of the weight files: those in the index of a folder, `model.safetensors`, all such files, or a GGUF
 * file with its parts.
 */
export async function weightNames(
  name: HubName,
  all: readonly string[],
  { folder, files }: {
    readonly folder: string;
    readonly files: Pick<FileSystem, "join" | "readText">;
  },
): Promise<readonly string[]> {
  if (name.file !== undefined) return ggufParts(name.file);
  if (all.includes(WEIGHT_INDEX)) return await indexedFiles(folder, files);
  return all.includes("model.safetensors")
    ? ["model.safetensors"]
    : all.filter((path) => path.endsWith(".safetensors"));
}

/** Returns the files of given names. Throws DataError for a missing file. */
export function filesNamed(
  names: readonly string[],
  all: readonly HubFile[],
  { repo }: HubName,
): readonly HubFile[] {
  if (names.length === 0) {
    throw new DataError(
      `Cannot use '${repo}': it has no safetensors file. Choose a model that has one`,
    );
  }
  return names.map((name) => {
    const found = all.find(({ path }) => path === name);
    if (found) return found;
    throw new DataError(
      `Cannot use '${repo}': it has no file '${
        shown(name)
      }'. Check the name, or choose another revision`,
    );
  });
}
