/** Hashes of a checkpoint's files. Weights are hashed by block, so that a changed one is found. */

import type { TensorEntry } from "../../../runtime/mod.ts";
import type { Checkpoint } from "../../checkpoint/checkpoint.ts";
import { sha256 } from "../../digest.ts";
import type { FileSystem } from "../../files.ts";
import { withTensors } from "../../checkpoint/tensors.ts";

/** SHA-256 hashes of a checkpoint, in hexadecimal. */
export interface CheckpointHashes {
  readonly config: string;
  /** Absent if there is no tokenizer.json. */
  readonly tokenizer?: string;
  /** Tensors by block, such as `model.layers.3`. Other tensors are blocks of their own. */
  readonly weights: { readonly [block: string]: string };
}

/** Bytes of a tensor that are read at a time. */
const READ_BYTES = 64 << 20;

/** Reads all files of a checkpoint, and hashes them. */
export async function hashCheckpoint(
  { folder, weightFiles }: Pick<Checkpoint, "folder" | "weightFiles">,
  files: FileSystem,
): Promise<CheckpointHashes> {
  const text = async (name: string) =>
    await sha256(await files.readText(files.join(folder, name)));
  const tokenizer = await files.stat(files.join(folder, "tokenizer.json"));
  return {
    config: await text("config.json"),
    ...tokenizer ? { tokenizer: await text("tokenizer.json") } : {},
    weights: await withTensors(weightFiles, files, hashWeights, {
      views: false,
    }),
  };
}

async function hashWeights(
  tensors: ReadonlyMap<string, TensorEntry>,
): Promise<{ readonly [block: string]: string }> {
  const blocks = new Map<string, string>();
  // In the order of names, which no file changes.
  const entries = [...tensors.values()]
    .sort((a, b) => a.name < b.name ? -1 : 1);
  for (const entry of entries) {
    const [block] = /^.*?\.\d+(?=\.)/.exec(entry.name) ?? [entry.name];
    const before = blocks.get(block) ?? "";
    blocks.set(block, await sha256(before + await hashTensor(entry)));
  }
  return Object.fromEntries(blocks);
}

/** The hash of a tensor: its name, dtype and shape, and its bytes in pieces. */
async function hashTensor(
  { name, dtype, shape, source, offset, bytes }: TensorEntry,
): Promise<string> {
  let digest = await sha256(JSON.stringify([name, dtype, shape]));
  for (let from = 0; from < bytes; from += READ_BYTES) {
    const length = Math.min(READ_BYTES, bytes - from);
    const piece = await source.read(offset + from, length);
    digest = await sha256(digest + await sha256(piece));
  }
  return digest;
}
