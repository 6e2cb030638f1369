/** Matrices in layouts that kernels read from safetensors files, for other readers: MXFP4, and INT8 per channel. */

import type { TensorDirectory, TensorEntry } from "../../runtime/mod.ts";
import { packedParts, PACKINGS } from "../../spec/weights/packed.ts";
import { mxfp4Parts } from "./compressed.ts";
import type { StoredMatrix } from "./matrix.ts";
import { bytesIn, floatsIn, rowsOf } from "./read.ts";

/** Returns the matrices of a checkpoint that have no views. Experts in one tensor have rows of contracted elements. */
export function filedMatrices(tensors: TensorDirectory): StoredMatrix[] {
  const parts = packedParts(
    tensors.keys(),
    (file, name) => tensors.get(name)!.dtype === file.dtype,
  );
  return [...parts].flatMap(([name, { dtype, param, part }]) => {
    if (part === "scales") return [];
    const elements = tensors.get(name)!;
    const scales = tensors.get(param + PACKINGS[dtype].names.scales)!;
    return [(dtype === "mxfp4" ? mxfp4 : int8)(param, { elements, scales })];
  });
}

interface Stored {
  readonly elements: TensorEntry;
  readonly scales: TensorEntry;
}

/** A tensor with one axis of rows. */
function flat(entry: TensorEntry, rows: number): TensorEntry {
  return { ...entry, shape: [rows, entry.bytes / rows] };
}

function mxfp4(param: string, { elements, scales }: Stored): StoredMatrix {
  const axes = elements.shape.slice(0, -2);
  const [experts] = axes.length > 1 ? axes : [];
  const rows = axes.reduce((n, size) => n * size, 1);
  const group = PACKINGS.mxfp4.perScale!;
  return {
    param,
    ...mxfp4Parts({ codes: flat(elements, rows), scales: flat(scales, rows) }),
    rows,
    columns: group * elements.shape.at(-2)!,
    ...experts === undefined ? {} : { experts },
    group,
    codes: elements,
  };
}

function int8(param: string, { elements, scales }: Stored): StoredMatrix {
  const [rows = 1, columns = 1] = elements.shape;
  return {
    param,
    of: [elements.name, scales.name],
    rows,
    columns,
    element: "int8",
    group: columns,
    codes: elements,
    read: async (part, begin, end) =>
      part === "codes"
        ? await bytesIn(rowsOf(elements, begin, end))
        : await floatsIn(rowsOf(scales, begin, end)),
  };
}
