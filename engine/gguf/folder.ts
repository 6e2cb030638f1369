/** A GGUF file as a checkpoint folder: its header as the JSON files of one. */

import { DataError } from "../../spec/errors.ts";
import type { FileSystem } from "../files.ts";
import { configOf } from "./architectures.ts";
import { type GgufHeader, readGguf } from "./header.ts";
import { tokenizerOf } from "./tokenizer.ts";

/** Whether a path names a GGUF file. */
export function isGguf(path: string): boolean {
  return /\.gguf$/i.test(path);
}

/** The first and the further files of a model: `name-00001-of-00003.gguf`. */
export function ggufParts(path: string): string[] {
  const [, start, first, count] =
    /^(.*-)(\d{5})-of-(\d{5})\.gguf$/i.exec(path) ?? [];
  if (start === undefined || Number(first) !== 1) return [path];
  return Array.from(
    { length: Number(count) },
    (_, i) => `${start}${String(i + 1).padStart(5, "0")}-of-${count}.gguf`,
  );
}

/** Files in which every GGUF file is a folder with config.json and the files of its tokenizer. */
export function withGguf(files: FileSystem): FileSystem {
  const read = new Map<string, Promise<ReadonlyMap<string, string>>>();
  const made = (path: string): Promise<ReadonlyMap<string, string>> => {
    const known = read.get(path) ?? madeFiles(path, files);
    read.set(path, known);
    return known;
  };
  /** The file and the name in it that a path has, if it goes into a GGUF file. */
  const inside = (path: string) => {
    const [, file, name] = /^(.*\.gguf)[/\\]([^/\\]+)$/i.exec(path) ?? [];
    return file !== undefined && name !== undefined
      ? { file, name }
      : undefined;
  };
  return {
    ...files,
    stat: async (path) => {
      const at = inside(path);
      if (at) return (await made(at.file)).has(at.name) ? "file" : undefined;
      const kind = await files.stat(path);
      return kind === "file" && isGguf(path) ? "folder" : kind;
    },
    list: async (folder) =>
      isGguf(folder)
        ? [...(await made(folder)).keys()]
        : await files.list(folder),
    readText: async (path) => {
      const at = inside(path);
      if (!at) return await files.readText(path);
      const text = (await made(at.file)).get(at.name);
      if (text !== undefined) return text;
      throw new DataError(
        `Cannot read '${path}': the file has no such part. Check the path`,
      );
    },
  };
}

/** The header of a file. */
export async function openGguf(
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

/** The texts of the files that a header makes, by name. */
async function madeFiles(
  path: string,
  files: FileSystem,
): Promise<ReadonlyMap<string, string>> {
  const header = await openGguf(path, files);
  // Tensors of a model in parts are in all of them.
  const parts = await Promise.all(
    ggufParts(path).slice(1).map((part) => openGguf(part, files)),
  );
  const whole = {
    ...header,
    tensors: [header, ...parts].flatMap(({ tensors }) => tensors),
  };
  const made = new Map<string, string>();
  made.set("config.json", JSON.stringify(configOf(path, whole)));
  const tokenizer = tokenizerOf(path, header);
  if (tokenizer) {
    made.set("tokenizer.json", JSON.stringify(tokenizer.tokenizer));
    made.set("tokenizer_config.json", JSON.stringify(tokenizer.config));
  }
  return made;
}
