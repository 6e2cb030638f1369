/** Merges adapters into the weights of a checkpoint. */

import { adapterNames } from "../../compiler/mod.ts";
import {
  bytesOf,
  type HostTensor,
  narrow,
  readTensor,
  safetensorsHead,
  type TensorDirectory,
  type TensorEntry,
} from "../../runtime/mod.ts";
import { isHalf, type StoredDType } from "../../spec/dtype.ts";
import { DataError } from "../../spec/errors.ts";
import { shown } from "../../spec/shown.ts";
import {
  COMPANION_FILES,
  openCheckpoint,
  WEIGHT_INDEX,
} from "../checkpoint.ts";
import type { FileSystem } from "../files.ts";
import { isGguf } from "../gguf/folder.ts";
import { withTensors } from "../tensors.ts";
import { readLora } from "./folder.ts";

/** Options of `mergeLora`. */
export interface MergeOptions {
  /** The folder of the adapters. */
  readonly lora: string;
  /** The folder to write; it must not exist. */
  readonly out: string;
  /** Called with the written bytes, and with those of all tensors. */
  readonly onProgress?: (done: number, total: number) => void;
}

/** Dtypes of weights that can be merged. */
const MERGED: { readonly [dtype: string]: StoredDType } = {
  F32: "f32",
  F16: "f16",
  BF16: "bf16",
};

/**
 * Writes a checkpoint whose matrices are `W + scale · B A`, computed in f64 and rounded to the dtype of W. Other files
 * and tensors are copied. One tensor is in memory at a time. Returns the number of merged matrices. Throws DataError for
 * adapters of another model, and for matrices that are quantized.
 */
export async function mergeLora(
  folder: string,
  files: FileSystem,
  { lora, out, onProgress }: MergeOptions,
): Promise<number> {
  const { weightFiles } = await openCheckpoint(folder, files);
  const adapters = await readLora(lora, files);
  if (await files.stat(out) !== undefined) {
    throw new DataError(
      `Cannot write '${out}': it exists already. Choose another name`,
    );
  }
  if (weightFiles.some(isGguf)) {
    throw new DataError(
      `Cannot merge adapters into '${folder}': it is a GGUF file. Give a checkpoint folder`,
    );
  }
  const unused = new Set(adapters.modules);
  await withTensors([...weightFiles, adapters.path], files, async (all) => {
    const stored = [...all.values()].filter(({ of }) => of === undefined);
    const total = stored.reduce((n, { bytes }) => n + bytes, 0);
    for (const { name, dtype, of } of all.values()) {
      const module = name.replace(/\.weight$/, "");
      if (!unused.delete(module) || of === undefined && MERGED[dtype]) continue;
      throw new DataError(
        `Cannot merge adapters into '${folder}': tensor '${shown(name)}' is ${
          of ? "quantized" : dtype
        }. Give a checkpoint in f32, bf16 or f16`,
      );
    }
    const [module] = unused;
    if (module !== undefined) {
      throw new DataError(
        `Cannot merge the adapters of '${lora}': the checkpoint has no matrix '${
          shown(module)
        }'. Give those of this checkpoint`,
      );
    }
    await files.makeFolder(out);
    let done = 0;
    for (const path of weightFiles) {
      const name = path.slice(files.join(folder, "x").length - 1);
      await withTensors([path], files, async (tensors) => {
        await files.write(
          files.join(out, name),
          mergedBytes(tensors, all, {
            scale: adapters.scale,
            onBytes: (bytes) => onProgress?.(done += bytes, total),
          }),
        );
      });
    }
  });
  for (const name of ["config.json", WEIGHT_INDEX, ...COMPANION_FILES]) {
    const path = files.join(folder, name);
    if (await files.stat(path) === undefined) continue;
    const text = await files.readText(path);
    await files.write(files.join(out, name), [new TextEncoder().encode(text)]);
  }
  return adapters.modules.size;
}

/** A safetensors file with merged matrices. */
async function* mergedBytes(
  tensors: TensorDirectory,
  all: TensorDirectory,
  { scale, onBytes }: {
    readonly scale: number;
    readonly onBytes: (bytes: number) => void;
  },
): AsyncGenerator<Uint8Array, void, undefined> {
  const entries = [...tensors.values()].filter(({ of }) => of === undefined)
    .sort((a, b) => a.offset - b.offset);
  yield safetensorsHead(
    entries.map(({ name, dtype, shape }) => [
      name,
      { dtype: dtype.toLowerCase() as StoredDType, shape },
    ]),
    { format: "pt" },
  );
  for (const entry of entries) {
    const { a, b } = adapterNames(entry.name);
    const [down, up] = [all.get(a), all.get(b)];
    yield down && up
      ? await merged(
        entry,
        [await readTensor(down), await readTensor(up)],
        scale,
      )
      : await entry.source.read(entry.offset, entry.bytes);
    onBytes(entry.bytes);
  }
}

/** The bytes of `W + scale · B A`. */
async function merged(
  entry: TensorEntry,
  [{ shape: [rank = 0, inputs = 0], data: a }, { shape: rows, data: b }]:
    readonly [HostTensor, HostTensor],
  scale: number,
): Promise<Uint8Array> {
  const [outputs = 0] = rows;
  if (
    entry.shape.join() !== [outputs, inputs].join() ||
    rows.join() !== [outputs, rank].join()
  ) {
    throw new DataError(
      `Cannot merge adapters into '${shown(entry.name)}': its shape is [${
        entry.shape.join(", ")
      }], and that of its adapters [${
        [outputs, inputs].join(", ")
      }]. Give those of this checkpoint`,
    );
  }
  const stored = MERGED[entry.dtype]!;
  const values = (await readTensor(entry)).data as Float32Array;
  const row = new Float64Array(inputs);
  for (let o = 0; o < outputs; o++) {
    row.fill(0);
    for (let r = 0; r < rank; r++) {
      const factor = b[o * rank + r]!;
      for (let i = 0; i < inputs; i++) row[i]! += factor * a[r * inputs + i]!;
    }
    const start = o * inputs;
    for (let i = 0; i < inputs; i++) {
      values[start + i] = values[start + i]! + scale * row[i]!;
    }
  }
  return bytesOf(isHalf(stored) ? narrow(stored, values) : values);
}
