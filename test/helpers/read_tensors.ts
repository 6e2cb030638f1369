/** Reader of reference tensors, independent of the runtime's. */

import { readFileSync } from "node:fs";
import { dirname, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const REFERENCES = resolve(
  dirname(fileURLToPath(import.meta.url)),
  "../references",
);

interface Header {
  readonly [name: string]: {
    readonly dtype: string;
    readonly data_offsets: readonly [number, number];
  };
}

/** Reads all tensors of a file in `test/references/` as numbers. */
export function readTensors(file: string): { [name: string]: number[] } {
  const bytes = readFileSync(resolve(REFERENCES, file));
  const start = 8 + Number(bytes.readBigUInt64LE(0));
  const header = JSON.parse(bytes.toString("utf8", 8, start)) as Header;
  const tensors: { [name: string]: number[] } = {};
  for (const [name, entry] of Object.entries(header)) {
    if (name === "__metadata__") continue;
    const [from, to] = entry.data_offsets;
    const data = bytes.subarray(start + from, start + to);
    tensors[name] = numbers(data, entry.dtype);
  }
  return tensors;
}

function numbers(data: Buffer, dtype: string): number[] {
  if (dtype === "U8") return [...data];
  const ArrayType = { F32: Float32Array, I32: Int32Array }[dtype];
  if (!ArrayType) throw new Error(`a reference of dtype ${dtype}`);
  // Tensors of a file need not be aligned.
  return Array.from(new ArrayType(Uint8Array.from(data).buffer));
}

/** Reads a JSON file in `test/references/`. */
export function readJson(file: string): { [field: string]: unknown } {
  return JSON.parse(readFileSync(resolve(REFERENCES, file), "utf8"));
}
