/**
 * GPTQ and AWQ: integers of 4 bits in i32 words, with a scale and a zero point per group of rows of the transposed
 * matrix.
 */

import type { TensorDirectory, TensorEntry } from "../../runtime/mod.ts";
import { DataError } from "../../spec/errors.ts";
import type { StoredMatrix } from "./matrix.ts";
import { floatsIn, halfScales, wordsIn } from "./read.ts";
import { unsupported } from "./refuse.ts";

const WORDS = ".qweight";

/** Column order of the nibbles of an AWQ word. */
const AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7];

/** The matrix of a tensor with words, if it is GPTQ or AWQ. */
export function gptqMatrix(
  words: TensorEntry,
  tensors: TensorDirectory,
): StoredMatrix | undefined {
  if (words.dtype !== "I32" || !words.name.endsWith(WORDS)) return undefined;
  const module = words.name.slice(0, -WORDS.length);
  const zeros = tensors.get(`${module}.qzeros`);
  const scales = tensors.get(`${module}.scales`);
  if (!zeros || scales?.shape.length !== 2) return undefined;
  const [groups, rows] = scales.shape as [number, number];
  // AWQ packs neighbouring rows, GPTQ neighbouring columns.
  const awq = words.shape[1] !== rows;
  const columns = awq ? words.shape[0]! : 8 * words.shape[0]!;
  const order = awq ? undefined : tensors.get(`${module}.g_idx`);
  if (
    zeros.shape[1] !== Math.ceil(rows / 8) ||
    awq && words.shape[1] !== rows / 8
  ) {
    throw unsupported(words, "its elements do not have 4 bits");
  }
  const group = columns / groups;
  const sizes = { rows };
  const layout = awq ? AWQ : GPTQ;
  const half = halfScales(scales);
  return {
    param: `${module}.weight`,
    of: [words, zeros, scales, ...order ? [order] : []].map(({ name }) => name),
    rows,
    columns,
    element: "uint4",
    group,
    ...half ? { scale: `${half}_zero` as const } : {},
    // The matrix is transposed in the file, so all of it is read for any of its rows.
    read: async (part, begin, end) => {
      if (part === "codes") {
        if (order) checkOrder(order, await wordsIn(order), group);
        const read = await wordsIn(words);
        const codes = new Uint8Array((end - begin) * columns);
        for (let column = 0; column < columns; column++) {
          for (let row = begin; row < end; row++) {
            codes[(row - begin) * columns + column] = layout.code(
              read,
              sizes,
              { row, column },
            );
          }
        }
        return codes;
      }
      /** The numbers of groups, row by row. */
      const byRow = <T extends Uint8Array | Float32Array>(
        to: T,
        valueOf: (row: number, column: number) => number,
      ) => {
        for (let i = 0; i < to.length; i++) {
          to[i] = valueOf(begin + Math.floor(i / groups), i % groups);
        }
        return to;
      };
      const count = (end - begin) * groups;
      if (part === "scales") {
        const factors = await floatsIn(scales);
        return byRow(
          new Float32Array(count),
          (row, column) => factors[column * rows + row]!,
        );
      }
      const points = await wordsIn(zeros);
      return byRow(
        new Uint8Array(count),
        (row, column) => layout.zero(points, sizes, { row, column }),
      );
    },
  };
}

/** Checks all GPTQ matrices for reordered columns, without reading their elements. Throws DataError for one. */
export async function checkColumnOrders(
  tensors: TensorDirectory,
): Promise<void> {
  for (const words of tensors.values()) {
    if (!words.name.endsWith(WORDS)) continue;
    const module = words.name.slice(0, -WORDS.length);
    const order = tensors.get(`${module}.g_idx`);
    const scales = tensors.get(`${module}.scales`);
    if (!order || !scales) continue;
    const group = order.shape[0]! / scales.shape[0]!;
    checkOrder(order, await wordsIn(order), group);
  }
}

/** Rejects groups whose columns are not consecutive. */
function checkOrder(
  entry: TensorEntry,
  order: Uint32Array,
  group: number,
): void {
  const other = order.findIndex((of, column) =>
    of !== Math.floor(column / group)
  );
  if (other < 0) return;
  throw new DataError(
    `Cannot read tensor '${entry.name}' of '${entry.source.name}': its columns are reordered ('desc_act'). Use a quantization without it`,
  );
}

interface Sizes {
  readonly rows: number;
}

/** Location of an element, and of the scale and zero point of its group. */
interface ElementIndex {
  readonly row: number;
  /** The column of an element, or the group of a zero point. */
  readonly column: number;
}

/** Packing of codes and zero points in a layout. */
interface Layout {
  readonly code: (
    words: Uint32Array,
    sizes: Sizes,
    element: ElementIndex,
  ) => number;
  readonly zero: (
    words: Uint32Array,
    sizes: Sizes,
    element: ElementIndex,
  ) => number;
}

/**
 * Eight neighbouring columns of codes per word, and eight neighbouring rows of zero points, which files store minus
 * one.
 */
const GPTQ: Layout = {
  code: (words, { rows }, { row, column }) =>
    (words[(column >> 3) * rows + row]! >>> (4 * (column & 7))) & 15,
  zero: (words, { rows }, { row, column }) => {
    const word = words[column * Math.ceil(rows / 8) + (row >> 3)]!;
    return ((word >>> (4 * (row & 7))) & 15) + 1;
  },
};

/** Eight neighbouring rows per word, for codes and zero points. */
function awqNibble(
  words: Uint32Array,
  { rows }: Sizes,
  { row, column }: ElementIndex,
): number {
  const word = words[column * rows / 8 + (row >> 3)]!;
  return (word >>> (4 * AWQ_ORDER.indexOf(row & 7))) & 15;
}

const AWQ: Layout = { code: awqNibble, zero: awqNibble };
