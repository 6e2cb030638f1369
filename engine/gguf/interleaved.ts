/**
 * Row orders of queries and keys. Checkpoints store the first halves of a head's rotated pairs first; some GGUF files
 * store pairs adjacently.
 */

import type { TensorEntry } from "../../runtime/mod.ts";
import { readExactly } from "../../runtime/weights/file_source.ts";
import { rowSource } from "../encodings/matrix.ts";

/** Returns the file row with adjacent pairs for checkpoint row `row`. `width` is the length of a head. */
export function uninterleavedRow(row: number, width: number): number {
  const at = row % width;
  const pair = at % (width / 2);
  return row - at + 2 * pair + (at < width / 2 ? 0 : 1);
}

/** Returns the checkpoint row for file row `row` with adjacent pairs. */
function interleavedRow(row: number, width: number): number {
  const at = row % width;
  return row - at + (at >> 1) + (at & 1) * width / 2;
}

/** Place and shape of the bytes of a tensor. */
export type Stored = Pick<TensorEntry, "source" | "offset" | "bytes" | "shape">;

/** Some rows of a tensor and the bytes of a row. */
interface Rows {
  readonly begin: number;
  readonly end: number;
  readonly rowBytes: number;
}

/** A tensor with other bytes of the same length. `read` returns those of some rows. */
export function withRead<T extends Stored>(
  tensor: T,
  read: (rows: Rows) => Promise<Uint8Array>,
): T {
  const [rows = 1] = tensor.shape;
  const rowBytes = tensor.bytes / rows;
  const source = rowSource(tensor.source.name, {
    rows,
    rowBytes,
    read: (begin, end) => read({ begin, end, rowBytes }),
  });
  return { ...tensor, offset: 0, source };
}

/** Reorders the rows of a tensor: row `row` is its row `rowOf(row)`. */
export function withRows<T extends Stored>(
  tensor: T,
  rowOf: (row: number) => number,
): T {
  const { source, offset } = tensor;
  return withRead(tensor, async ({ begin, end, rowBytes }) => {
    const read = new Uint8Array((end - begin) * rowBytes);
    for (let row = begin; row < end; row++) {
      const from = offset + rowOf(row) * rowBytes;
      const bytes = await readExactly(source, from, rowBytes);
      read.set(bytes, (row - begin) * rowBytes);
    }
    return read;
  });
}

/** Returns a checkpoint tensor with its rows in the order of a file with adjacent pairs. */
export function interleaved<T extends Stored>(tensor: T, width: number): T {
  return withRows(tensor, (row) => interleavedRow(row, width));
}
