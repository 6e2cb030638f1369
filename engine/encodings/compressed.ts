/**
 * compressed-tensors. `pack-quantized`: integers of 4 or 8 bits in i32 words along rows, with a scale and optionally a
 * zero point per group. NVFP4: floats of 4 bits, two per byte, with an E4M3 scale per 16 and one f32 for all. MXFP4:
 * such floats with a power of two per 32.
 */

import { PACKINGS } from "../../spec/weights/packed.ts";
import type { TensorDirectory, TensorEntry } from "../../runtime/mod.ts";
import type { StoredMatrix } from "./matrix.ts";
import {
  bytesIn,
  codesOf,
  floatsIn,
  halfScales,
  rowsOf,
  wordsIn,
} from "./read.ts";
import { refuseNaN, unsupported } from "./refuse.ts";

const PACKED = "_packed";

/** The matrix of a tensor with codes, if it is `pack-quantized`. */
export function packQuantizedMatrix(
  codes: TensorEntry,
  tensors: TensorDirectory,
): StoredMatrix | undefined {
  if (codes.dtype !== "I32" || !codes.name.endsWith(PACKED)) return undefined;
  const param = codes.name.slice(0, -PACKED.length);
  const part = (ending: string) => tensors.get(param + ending);
  const [scales, shape, zeros, order] = [
    "_scale",
    "_shape",
    "_zero_point",
    "_g_idx",
  ].map(part);
  if (!scales || !shape || scales.shape.length !== 2) return undefined;
  if (order) throw unsupported(order, "its columns are reordered ('actorder')");
  const [rows, words] = codes.shape as [number, number];
  const groups = scales.shape[1]!;
  // Rows of 8-bit codes would have half as many columns, and group sizes are powers of two.
  const columns = 8 * words;
  const group = columns / groups;
  if (!Number.isInteger(Math.log2(group)) && groups > 1) {
    throw unsupported(codes, `its groups have ${group} columns`);
  }
  const half = halfScales(scales);
  return {
    param,
    of: [codes, scales, shape, ...zeros ? [zeros] : []].map(({ name }) => name),
    rows,
    columns,
    element: zeros ? "uint4" : "int4",
    group,
    ...half ? { scale: zeros ? `${half}_zero` as const : half } : {},
    codes,
    read: async (part, begin, end) => {
      if (part === "codes") {
        return codesOf(await wordsIn(rowsOf(codes, begin, end)), 4);
      }
      if (part === "scales" || !zeros) {
        return await floatsIn(rowsOf(scales, begin, end));
      }
      // Zero points are packed along rows.
      const points = await wordsIn(zeros);
      return Uint8Array.from({ length: (end - begin) * groups }, (_, i) => {
        const row = begin + Math.floor(i / groups);
        const word = points[Math.floor(row / 8) * groups + i % groups]!;
        return (word >>> (4 * (row % 8))) & 15;
      });
    },
  };
}

/** Suffix of the name of the global scale, and whether it is the reciprocal of the factor of all scales. */
const GLOBAL_SCALES = [
  { codes: PACKED, scale: "_global_scale", isReciprocal: true },
  { codes: "", scale: "_scale_2", isReciprocal: false },
];

/** The factor of a matrix. Throws DataError for one whose products with scales may be subnormal or too large. */
async function factorIn(
  global: TensorEntry,
  isReciprocal: boolean,
): Promise<number> {
  const [stored = 1] = await floatsIn(global);
  const factor = isReciprocal ? 1 / stored : stored;
  const size = Math.abs(factor);
  if (size === 0 || 2 ** -100 <= size && size <= 2 ** 40) return factor;
  throw unsupported(
    global,
    `it is ${stored}, and the factor of scales must be 0 or from 2^-100 to 2^40`,
  );
}

/** The matrix of a tensor with codes, if it is NVFP4. */
export function nvfp4Matrix(
  codes: TensorEntry,
  tensors: TensorDirectory,
): StoredMatrix | undefined {
  if (codes.dtype !== "U8" || codes.shape.length !== 2) return undefined;
  for (const { codes: ending, scale, isReciprocal } of GLOBAL_SCALES) {
    if (!codes.name.endsWith(ending)) continue;
    const param = codes.name.slice(0, codes.name.length - ending.length);
    const [scales, global] = [
      tensors.get(`${param}_scale`),
      tensors.get(param + scale),
    ];
    if (!global || scales?.dtype !== "F8_E4M3") continue;
    const [rows, bytes] = codes.shape as [number, number];
    const columns = 2 * bytes;
    const [, groups] = scales.shape as [number, number];
    return {
      param,
      of: [codes.name, scales.name, global.name],
      rows,
      columns,
      element: "fp4",
      group: columns / groups,
      codes,
      read: async (part, begin, end) => {
        if (part === "codes") return await halvesOf(codes, begin, end);
        if (part === "scales") {
          return refuseNaN(scales, await bytesIn(rowsOf(scales, begin, end)));
        }
        const factor = await factorIn(global, isReciprocal);
        return new Float32Array(end - begin).fill(factor);
      },
    };
  }
  return undefined;
}

/** The matrix of a tensor with codes, if it is MXFP4. */
export function mxfp4Matrix(
  codes: TensorEntry,
  tensors: TensorDirectory,
): StoredMatrix | undefined {
  if (codes.dtype !== "U8" || !codes.name.endsWith(PACKED)) return undefined;
  const param = codes.name.slice(0, -PACKED.length);
  const scales = tensors.get(`${param}_scale`);
  if (scales?.dtype !== "U8") return undefined;
  const [rows, bytes] = codes.shape as [number, number];
  const columns = 2 * bytes;
  // Grouped floats of 4 bits have other scales.
  const group = PACKINGS.mxfp4.perScale!;
  if (columns !== group * scales.shape[1]!) return undefined;
  return {
    param,
    ...mxfp4Parts({ codes, scales }),
    rows,
    columns,
    group,
    codes,
  };
}

/** The elements and scales of MXFP4 rows: codes [rows, bytes] and scales [rows, groups]. */
export function mxfp4Parts(
  { codes, scales }: {
    readonly codes: TensorEntry;
    readonly scales: TensorEntry;
  },
): Pick<StoredMatrix, "of" | "element" | "scale" | "read"> {
  return {
    of: [codes.name, scales.name],
    element: "fp4",
    scale: "e8m0",
    read: async (part, begin, end) =>
      part === "codes"
        ? await halvesOf(codes, begin, end)
        : await floatsIn(rowsOf(scales, begin, end)),
  };
}

/** Rows of 4-bit codes, two per byte, first in the low bits: a byte each. */
async function halvesOf(
  codes: TensorEntry,
  begin: number,
  end: number,
): Promise<Uint8Array> {
  const read = await bytesIn(rowsOf(codes, begin, end));
  return Uint8Array.from(
    { length: 2 * read.length },
    (_, i) => (read[i >> 1]! >> (4 * (i & 1))) & 15,
  );
}
