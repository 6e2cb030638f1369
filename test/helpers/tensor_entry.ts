/** Tensors of a file in memory. */

import type { TensorEntry } from "../../runtime/mod.ts";

/** A tensor whose elements are `data`. */
export function entryInMemory(
  name: string,
  { dtype, shape, data }: Pick<TensorEntry, "dtype" | "shape"> & {
    readonly data: ArrayBufferView;
  },
): TensorEntry {
  const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  const source = {
    name: "file",
    size: bytes.length,
    read: (offset: number, length: number) =>
      Promise.resolve(bytes.slice(offset, offset + length)),
  };
  return { name, dtype, shape, source, offset: 0, bytes: bytes.length };
}
