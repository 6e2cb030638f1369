/** Reads 64-bit integers, which published tables of ids use, as the 32-bit integers of plans. */

import { readTensor, type TensorEntry } from "../../runtime/mod.ts";
import { rowSource } from "./matrix.ts";
import { rowsOf } from "./read.ts";

/** The tensor in 32 bits, under its own name. Reading throws DataError for a number out of range. */
export function integerView(entry: TensorEntry): TensorEntry | undefined {
  const { name, dtype, shape, bytes, source } = entry;
  const [rows = 0] = shape;
  if (dtype !== "I64" || rows === 0) return undefined;
  const view = rowSource(source.name, {
    rows,
    rowBytes: bytes / 2 / rows,
    read: async (begin, end) => {
      const { data } = await readTensor(rowsOf(entry, begin, end));
      return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    },
  });
  const half = view.size;
  return { name, dtype: "I32", shape, source: view, offset: 0, bytes: half };
}
