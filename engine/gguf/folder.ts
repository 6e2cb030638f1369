/** A GGUF file as a checkpoint folder, with its header as JSON files. */

import { DataError } from "../../spec/errors.ts";
import type { FileSystem } from "../files.ts";

/** Whether a path is a GGUF file name. */
export function isGguf(path: string): boolean {
  return /\.gguf$/i.test(path);
}

/** The first and the other files of a model: `name-00001-of-00003.gguf`. */
export function ggufParts(path: string): string[] {
  const [, start, first, count] =
    /^(.*-)(\d{5})-of-(\d{5})\.gguf$/i.exec(path) ?? [];
  if (start === undefined || Number(first) !== 1) return [path];
  return Array.from(
    { length: Number(count) },
    (_, i) => `${start}${String(i + 1).padStart(5, "0")}-of-${count}.gguf`,
  );
}

/** A file system in which every GGUF file is a folder with config.json and tokenizer files. */
export function withGguf(files: FileSystem): FileSystem {
  const read = new Map<string, Promise<ReadonlyMap<string, string>>>();
  const made = (path: string): Promise<ReadonlyMap<string, string>> => {
    // Loaded on demand: every command creates this file system.
    const known = read.get(path) ??
      import("./made_files.ts").then(({ madeFiles }) => madeFiles(path, files));
    read.set(path, known);
    return known;
  };
  /** The file and the name in it, for a path inside a GGUF file. */
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
