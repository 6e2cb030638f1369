/** Encoders of matrices in folders: FP8 in blocks of rows and columns, and MXFP4. */

import { nearestCode } from "../encodings/nearest.ts";
import { fitMxfp4 } from "../gguf/encode_blocks.ts";
import { loadBlock, weightedBlock } from "../gguf/fit.ts";

/** Rows and columns per scale of FP8 in written folders. */
export const FP8_BLOCK = 128;

/** Encoded rows. */
export interface EncodedRows<S> {
  readonly codes: Uint8Array;
  readonly scales: S;
}

/** The largest E4M3. */
const LARGEST = 448;

const fp8 = nearestCode("fp8");

/** Encodes rows, the first of which begins a block. Scales have the axes [blocks of rows, blocks of columns]. */
export function encodeFp8(
  values: Float32Array,
  columns: number,
): EncodedRows<Float32Array> {
  const rows = values.length / columns;
  const across = Math.ceil(columns / FP8_BLOCK);
  const scales = new Float32Array(Math.ceil(rows / FP8_BLOCK) * across);
  const codes = new Uint8Array(values.length);
  for (let block = 0; block < scales.length; block++) {
    const left = block % across * FP8_BLOCK;
    const width = Math.min(FP8_BLOCK, columns - left);
    const top = Math.floor(block / across) * FP8_BLOCK;
    const begin = top * columns + left;
    const end = Math.min(rows, top + FP8_BLOCK) * columns;
    let largest = 0;
    for (let row = begin; row < end; row += columns) {
      for (let i = row; i < row + width; i++) {
        largest = Math.max(largest, Math.abs(values[i]!));
      }
    }
    // A scale of zero is invalid for readers that divide by it.
    scales[block] = largest / LARGEST || 1;
    const scale = scales[block]!;
    for (let row = begin; row < end; row += columns) {
      for (let i = row; i < row + width; i++) {
        codes[i] = fp8.code(values[i]! / scale);
      }
    }
  }
  return { codes, scales };
}

/** Encodes rows in groups of 32 with an exponent each. `importance` has a number per column. */
export function encodeMxfp4Rows(
  values: Float32Array,
  importance: Float32Array | undefined,
): EncodedRows<Uint8Array> {
  const bytes = new Uint8Array(values.length / 2);
  const scales = new Uint8Array(values.length / 32);
  const weighted = weightedBlock(32);
  const matrix = { values, importance };
  for (let group = 0; group < scales.length; group++) {
    loadBlock(weighted, matrix, 32 * group);
    const { exponent, codes } = fitMxfp4(weighted);
    scales[group] = exponent;
    for (let i = 0; i < 16; i++) {
      bytes[16 * group + i] = codes[2 * i]! | codes[2 * i + 1]! << 4;
    }
  }
  return { codes: bytes, scales };
}
