/** Checkpoints that tests write, and their outputs. */

import { createHash } from "node:crypto";
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import {
  loadTarget,
  openTarget,
  quantizeCheckpoint,
  readTensors,
  runOpened,
  type Tensors,
  writeSafetensors,
} from "../../engine/mod.ts";
import { files, meshOf, padBatch } from "./checkpoints.ts";
import { type RawTensor, writeRaw } from "./cli.ts";

/** A tensor of a safetensors file. */
export interface FileTensor extends Omit<RawTensor, "data"> {
  readonly data: ArrayBufferView;
}

/** Writes config.json and model.safetensors to a new folder. */
export async function writeCheckpoint(
  folder: string,
  tensors: { readonly [name: string]: FileTensor },
  config: object,
): Promise<void> {
  const raw = Object.entries(tensors).map(([name, { data, ...tensor }]) => {
    const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    return [name, { ...tensor, data: bytes }] as const;
  });
  await mkdir(folder, { recursive: true });
  await writeRaw(join(folder, "model.safetensors"), Object.fromEntries(raw));
  await writeFile(join(folder, "config.json"), JSON.stringify(config));
}

/** All outputs of a checkpoint for two prompts on a mesh. */
export async function runPrompts(
  folder: string,
  mesh: string,
  adapter: "cpu" | "native" = "cpu",
): Promise<Tensors> {
  const opened = await openTarget(await loadTarget(folder, files), files, {
    sharing: "shared",
    adapter,
    mesh: meshOf(mesh),
    need: { tokens: 16, sequences: 2, context: 16 },
  });
  try {
    const prompts = [[5, 100, 7, 3, 200, 9], [17, 80, 3]];
    return await runOpened(opened, padBatch(prompts));
  } finally {
    await opened.close();
  }
}

/** Digest of `runPrompts`. */
export async function outputsOf(
  ...run: Parameters<typeof runPrompts>
): Promise<string> {
  const outputs = await runPrompts(...run);
  return createHash("sha256").update(writeSafetensors(outputs)).digest("hex");
}

/** Digest of the tensors of the Q8_0 file of a checkpoint, in the order of their names. */
export async function quantizedOf(folder: string): Promise<string> {
  const out = `${folder}.gguf`;
  await quantizeCheckpoint(folder, files, { to: "q8_0", out });
  const tensors = await readTensors(out, files);
  const sorted = Object.keys(tensors).filter((name) => !name.includes(":"))
    .sort().map((name) => [name, tensors[name]!] as const);
  return createHash("sha256")
    .update(writeSafetensors(Object.fromEntries(sorted))).digest("hex");
}
