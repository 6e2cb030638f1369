/** Checkpoints with quantized matrices, written for tests. */

import { createHash } from "node:crypto";
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import {
  loadTarget,
  openTarget,
  runOpened,
  writeSafetensors,
} from "../../engine/mod.ts";
import { files, meshOf, padBatch } from "./checkpoints.ts";

/** A tensor of a safetensors file. */
export interface FileTensor {
  readonly dtype: "F32" | "F16" | "BF16" | "I8" | "U8" | "F8_E4M3";
  readonly shape: readonly number[];
  readonly data: ArrayBufferView<ArrayBuffer>;
}

/** Writes config.json and model.safetensors to a new folder. */
export async function writeCheckpoint(
  folder: string,
  tensors: { readonly [name: string]: FileTensor },
  config: object,
): Promise<void> {
  const header: { [name: string]: unknown } = {};
  let end = 0;
  for (const [name, { dtype, shape, data }] of Object.entries(tensors)) {
    const data_offsets = [end, end += data.byteLength];
    header[name] = { dtype, shape, data_offsets };
  }
  const text = Buffer.from(JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(text.length));
  const parts = Object.values(tensors).map(({ data }) =>
    Buffer.from(data.buffer, data.byteOffset, data.byteLength)
  );
  await mkdir(folder, { recursive: true });
  await writeFile(
    join(folder, "model.safetensors"),
    Buffer.concat([length, text, ...parts]),
  );
  await writeFile(join(folder, "config.json"), JSON.stringify(config));
}

/** Digest of all outputs of a checkpoint for two prompts on a mesh. */
export async function outputsOf(
  folder: string,
  mesh: string,
  adapter: "cpu" | "native" = "cpu",
): Promise<string> {
  const opened = await openTarget(await loadTarget(folder, files), files, {
    sharing: "shared",
    adapter,
    mesh: meshOf(mesh),
    need: { tokens: 16, sequences: 2, context: 16 },
  });
  try {
    const prompts = [[5, 100, 7, 3, 200, 9], [17, 80, 3]];
    const outputs = await runOpened(opened, padBatch(prompts));
    return createHash("sha256").update(writeSafetensors(outputs)).digest("hex");
  } finally {
    await opened.close();
  }
}
