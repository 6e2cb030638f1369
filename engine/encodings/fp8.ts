/** FP8 (E4M3) with a scale per block of rows and columns, per row, or per matrix: a float, or E8M0 (MXFP8). */

import type { TensorDirectory, TensorEntry } from "../../runtime/mod.ts";
import type { StoredMatrix } from "./matrix.ts";
import { bytesIn, floatsIn, rowsOf } from "./read.ts";
import { refuseNaN } from "./refuse.ts";

/** Suffixes of the name of the scales: `fp8` configurations; compressed-tensors and ModelOpt. */
const SCALES = ["_scale_inv", "_scale"];

/** The matrix of a tensor with codes, if it is one of these. */
export function fp8Matrix(
  codes: TensorEntry,
  tensors: TensorDirectory,
): StoredMatrix | undefined {
  if (codes.dtype !== "F8_E4M3" || codes.shape.length !== 2) return undefined;
  const scales = SCALES.map((ending) => tensors.get(codes.name + ending))
    .find((entry) => entry !== undefined);
  if (scales === undefined) return undefined;
  const [rows, columns] = codes.shape as [number, number];
  // ModelOpt stores blocks as [blocks of rows, 1, blocks of columns, 1].
  const { shape } = scales;
  const [down = 1, across = 1] = shape.length === 4
    ? [shape[0], shape[2]]
    : shape;
  const height = blockSize(rows, down);
  const group = blockSize(columns, across);
  if (height === undefined || group === undefined) return undefined;
  if (shape.length === 1 && down !== 1 && down !== rows) return undefined;
  return {
    param: codes.name,
    of: [codes.name, scales.name],
    rows,
    columns,
    element: "fp8",
    group,
    codes,
    read: async (part, begin, end) => {
      if (part === "codes") {
        return refuseNaN(codes, await bytesIn(rowsOf(codes, begin, end)));
      }
      const first = Math.floor(begin / height);
      const values = await floatsIn(
        down === 1 ? scales : rowsOf(scales, first, Math.ceil(end / height)),
      );
      const rowOf = (row: number) =>
        (Math.floor(row / height) - (down === 1 ? 0 : first)) * across;
      const read = new Float32Array((end - begin) * across);
      for (let row = begin; row < end; row++) {
        read.set(
          values.subarray(rowOf(row), rowOf(row) + across),
          (row - begin) * across,
        );
      }
      return read;
    },
  };
}

/** The power of two for which `blocks` blocks cover `size`; 1 if the numbers are equal. Undefined if there is none. */
function blockSize(size: number, blocks: number): number | undefined {
  if (blocks === size) return 1;
  for (let block = 2; block < 2 * size; block *= 2) {
    if (Math.ceil(size / block) === blocks) return block;
  }
  return undefined;
}
