/** Published layouts of quantized weights, one row each. Kernels read none of them directly; see `matrix.ts`. */

import type { TensorDirectory, TensorEntry } from "../../runtime/mod.ts";
import { mxfp4Matrix, nvfp4Matrix, packQuantizedMatrix } from "./compressed.ts";
import { stackedExperts } from "./experts.ts";
import { fp8Matrix } from "./fp8.ts";
import { gptqMatrix } from "./gptq.ts";
import { integerView } from "./integers.ts";
import { type StoredMatrix, viewsOf } from "./matrix.ts";

/** The matrix of a tensor, if it has this layout. */
const LAYOUTS: readonly ((
  entry: TensorEntry,
  tensors: TensorDirectory,
) => StoredMatrix | undefined)[] = [
  fp8Matrix,
  packQuantizedMatrix,
  nvfp4Matrix,
  mxfp4Matrix,
  gptqMatrix,
];

function matrixOf(
  entry: TensorEntry,
  tensors: TensorDirectory,
): StoredMatrix[] {
  for (const layout of LAYOUTS) {
    const matrix = layout(entry, tensors);
    if (matrix) return [matrix];
  }
  return [];
}

/**
 * The tensors of a checkpoint with the views of its quantized matrices: codes, scales and offsets for kernels, and each
 * matrix as f32 under the parameter's name. Separate matrices of experts have views as one tensor too. 64-bit integers
 * have a view in 32 bits. The source tensors of views are listed too.
 */
export function withViews(tensors: TensorDirectory): TensorDirectory {
  const integers: TensorEntry[] = [];
  const matrices: StoredMatrix[] = [];
  for (const entry of tensors.values()) {
    const view = integerView(entry);
    if (view) integers.push(view);
    else matrices.push(...matrixOf(entry, tensors));
  }
  const views = [
    ...integers,
    ...[...matrices, ...stackedExperts(matrices)].flatMap(viewsOf),
  ];
  return views.length === 0
    ? tensors
    : new Map([...tensors, ...views.map((view) => [view.name, view] as const)]);
}
