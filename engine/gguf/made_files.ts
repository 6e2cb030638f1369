/** The JSON files of a checkpoint, generated from the header of a GGUF file. */

import type { FileSystem } from "../files.ts";
import { configOf } from "./config.ts";
import { ggufParts } from "./folder.ts";
import { type GgufHeader, readGguf } from "./header.ts";
import { tokenizerOf } from "./tokenizer.ts";

/** The header of a file. */
async function openGguf(
  path: string,
  files: Pick<FileSystem, "open">,
): Promise<GgufHeader> {
  const file = await files.open(path);
  try {
    return await readGguf(path, file);
  } finally {
    await file.close();
  }
}

/** The texts of the files generated from a header, by name. */
export async function madeFiles(
  path: string,
  files: FileSystem,
): Promise<ReadonlyMap<string, string>> {
  const header = await openGguf(path, files);
  // Tensors of a split model are in all parts.
  const parts = await Promise.all(
    ggufParts(path).slice(1).map((part) => openGguf(part, files)),
  );
  const joined = {
    ...header,
    tensors: [header, ...parts].flatMap(({ tensors }) => tensors),
  };
  const made = new Map<string, string>();
  made.set("config.json", JSON.stringify(configOf(path, joined)));
  const tokenizer = tokenizerOf(path, header);
  if (tokenizer) {
    made.set("tokenizer.json", JSON.stringify(tokenizer.tokenizer));
    made.set("tokenizer_config.json", JSON.stringify(tokenizer.config));
  }
  return made;
}
