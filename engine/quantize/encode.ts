/** Encoding of rows of matrices. It depends only on the task, so any thread can do it. */

import { narrow } from "../../runtime/half.ts";
import { isBlockType } from "../gguf/blocks.ts";
import { loadBlock, weightedBlock } from "../gguf/fit.ts";
import { encodeFp8, encodeMxfp4Rows } from "./encode_folder.ts";
import { type NumberedType, writtenType } from "./types.ts";

/** Rows, and what they become. */
export interface EncodeTask {
  /** A type of GGUF files by its name, or a format of folders. */
  readonly format:
    | { readonly file: string }
    | { readonly folder: "fp8" | "mxfp4" };
  /** Rows of `columns` elements. FP8: the first begins a block. */
  readonly values: Float32Array;
  readonly columns: number;
  /** Importance of columns. */
  readonly importance: Float32Array | undefined;
}

/** Bytes of encoded rows. */
export interface Encoded {
  readonly codes: Uint8Array;
  /** Scales of folders. In GGUF files they are part of the codes. */
  readonly scales: Uint8Array;
}

/** Encodes tasks, such as on other threads. */
export interface Encoder {
  /** Maximum number of tasks in memory. */
  readonly atOnce: number;
  /** Encodes the rows of a task, whose values are not used afterwards. */
  encode(task: EncodeTask): Promise<Encoded>;
}

/** Encodes on this thread. */
export const SAME_THREAD: Encoder = {
  atOnce: 1,
  encode: (task) => Promise.resolve(encodeTask(task)),
};

/** Encodes the rows of a task. Throws DataError for a type that cannot be written. */
export function encodeTask(
  { format, values, columns, importance }: EncodeTask,
): Encoded {
  if ("file" in format) {
    const codes = encodeRows(values, writtenType(format.file), importance);
    return { codes, scales: new Uint8Array() };
  }
  if (format.folder === "mxfp4") {
    return encodeMxfp4Rows(values, importance);
  }
  const { codes, scales } = encodeFp8(values, columns);
  return { codes, scales: new Uint8Array(scales.buffer) };
}

/** Encodes rows in a type. `importance` has a number per column. */
export function encodeRows(
  values: Float32Array,
  type: NumberedType,
  importance: Float32Array | undefined,
): Uint8Array {
  if (!isBlockType(type)) {
    const stored = type.dtype === "F32"
      ? values
      : narrow(type.dtype === "F16" ? "f16" : "bf16", values);
    return new Uint8Array(stored.buffer, stored.byteOffset, stored.byteLength);
  }
  const { elements, bytes } = type;
  const blocks = new Uint8Array(values.length / elements * bytes);
  // Arrays of every block are many times more expensive than copies.
  const block = new Uint8Array(bytes);
  const weighted = weightedBlock(elements);
  const rows = { values, importance };
  for (let i = 0; i * elements < values.length; i++) {
    loadBlock(weighted, rows, i * elements);
    block.fill(0);
    type.encode!(weighted, block);
    blocks.set(block, i * bytes);
  }
  return blocks;
}
