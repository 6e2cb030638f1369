/** Orders of rows of queries and keys: checkpoints have the first halves of a head's rotated pairs first, some GGUF files have pairs beside each other. */

import type { TensorEntry } from "../../runtime/mod.ts";
import { readExactly } from "../../runtime/file_source.ts";
import { rowSource } from "../encodings/matrix.ts";

/** The row of a file with pairs that is row `row` of a checkpoint. `width` is that of a head. */
export function uninterleavedRow(row: number, width: number): number {
  const at = row % width;
  const pair = at % (width / 2);
  return row - at + 2 * pair + (at < width / 2 ? 0 : 1);
}

/** The row of a checkpoint that is row `row` of a file with pairs. */
export function interleavedRow(row: number, width: number): number {
  const at = row % width;
  return row - at + (at >> 1) + (at & 1) * width / 2;
}

/** A tensor with its rows in another order: row `row` is row `rowOf(row)` of it. */
export function withRows<
  T extends Pick<TensorEntry, "source" | "offset" | "bytes" | "shape">,
>(
  tensor: T,
  rowOf: (row: number) => number,
): T {
  const { source, offset, bytes, shape } = tensor;
  const [rows = 1] = shape;
  const rowBytes = bytes / rows;
  return {
    ...tensor,
    offset: 0,
    source: rowSource(source.name, {
      rows,
      rowBytes,
      read: async (begin, end) => {
        const read = new Uint8Array((end - begin) * rowBytes);
        for (let row = begin; row < end; row++) {
          const from = offset + rowOf(row) * rowBytes;
          read.set(
            await readExactly(source, from, rowBytes),
            (row - begin) * rowBytes,
          );
        }
        return read;
      },
    }),
  };
}

/** A tensor of a checkpoint with the rows of a file with pairs. */
export function interleaved(tensor: TensorEntry, width: number): TensorEntry {
  return withRows(tensor, (row) => interleavedRow(row, width));
}
