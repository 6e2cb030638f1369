/** Safetensors files, opened through the passed file system. */

import {
  type FileSource,
  openSafetensors,
  readTensor,
  type TensorDirectory,
  type TensorEntry,
} from "../../runtime/mod.ts";
import type { HostTensor } from "../../runtime/mod.ts";
import { withViews } from "../encodings/mod.ts";
import { isGguf } from "../gguf/folder.ts";
import { type GgufHeader, readGguf } from "../gguf/header.ts";
import { ggufTensors, storedTensors } from "../gguf/tensors.ts";
import type { FileSystem, OpenFile } from "../files.ts";

/** Keeps the files of tensors open, unless the call of `withTensors` fails. Returns the function that closes them. */
export type KeepFiles = () => () => Promise<void>;

/** Options of `withTensors`. */
export interface WithTensorsOptions {
  /** Adds views of quantized matrices and uses checkpoint names, instead of tensors as in the files. Default: true. */
  readonly views?: boolean;
}

/** Runs `use` with the tensors of some files, which are closed afterwards unless they are kept. */
export async function withTensors<T>(
  paths: readonly string[],
  files: FileSystem,
  use: (tensors: TensorDirectory, keep: KeepFiles) => Promise<T>,
  { views = true }: WithTensorsOptions = {},
): Promise<T> {
  const open: OpenFile[] = [];
  let [done, kept] = [false, false];
  // Errors of closing are ignored, because all reads are done; other open files must still be closed.
  const close = async () => {
    for (const file of open) await file.close().catch(() => {});
  };
  try {
    const sources: FileSource[] = [];
    const entries: TensorEntry[] = [];
    // Keys are those of the first file.
    let first: GgufHeader | undefined;
    for (const name of paths) {
      const file = await files.open(name);
      open.push(file);
      const source = {
        name,
        size: file.size,
        ...file.descriptor === undefined ? {} : { descriptor: file.descriptor },
        read: (offset: number, length: number) => file.read(offset, length),
      };
      if (isGguf(name)) {
        const header = await readGguf(name, file);
        first ??= header;
        const { tensors } = header;
        entries.push(
          ...views
            ? ggufTensors(name, source, { keys: first.keys, tensors })
            : storedTensors(source, tensors),
        );
      } else sources.push(source);
    }
    const stored = await openSafetensors(sources);
    const tensors = views ? withViews(stored) : stored;
    const result = await use(
      entries.length === 0
        ? tensors
        : new Map([...tensors, ...entries.map((e) => [e.name, e] as const)]),
      () => {
        kept = true;
        return close;
      },
    );
    done = true;
    return result;
  } finally {
    if (!done || !kept) await close();
  }
}

/** Options of `readTensors`. */
export interface ReadTensorsOptions {
  /** Whether a tensor is read. Default: all are. */
  readonly wanted?: (name: string) => boolean;
}

/** Tensors of a file, in memory. */
export async function readTensors(
  path: string,
  files: FileSystem,
  { wanted = () => true }: ReadTensorsOptions = {},
): Promise<{ [name: string]: HostTensor }> {
  return await withTensors([path], files, async (tensors) => {
    const read: [string, HostTensor][] = [];
    for (const entry of [...tensors.values()].filter((e) => wanted(e.name))) {
      read.push([entry.name, await readTensor(entry)]);
    }
    // Names such as __proto__ are ordinary names here.
    return Object.fromEntries(read);
  });
}
