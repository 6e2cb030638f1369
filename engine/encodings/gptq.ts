/** GPTQ and AWQ: integers of 4 bits in i32 words, a float and a zero point for each group of rows of the transposed matrix. */

import type { TensorDirectory, TensorEntry } from "../../runtime/mod.ts";
import { DataError } from "../../spec/errors.ts";
import type { StoredMatrix } from "./matrix.ts";
import { codesOf, floatsIn, wordsIn } from "./read.ts";
import { unsupported } from "./refuse.ts";

const WORDS = ".qweight";

/** Which of eight neighbours each nibble of a word of AWQ is. */
const AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7];

/** All of a matrix, as it is transposed when it is read. */
interface Transposed {
  readonly codes: Uint8Array;
  readonly scales: Float32Array;
  readonly offsets: Float32Array;
}

/** The matrix whose words a tensor has, if it is GPTQ or AWQ. */
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
  let read: Promise<Transposed> | undefined;
  const all = async (): Promise<Transposed> => {
    if (order) checkOrder(order, await wordsIn(order), group);
    return awq
      ? transposedAwq(
        await wordsIn(words),
        await wordsIn(zeros),
        await floatsIn(scales),
        { rows, columns, groups },
      )
      : transposedGptq(
        await wordsIn(words),
        await wordsIn(zeros),
        await floatsIn(scales),
        { rows, columns, groups },
      );
  };
  return {
    param: `${module}.weight`,
    of: [words, zeros, scales, ...order ? [order] : []].map(({ name }) => name),
    rows,
    columns,
    element: "uint4",
    group,
    read: async (part, begin, end) => {
      const { codes, scales, offsets } = await (read ??= all());
      // The last part of the last rows: what was read is not needed again.
      if (part === "offsets" && end === rows) read = undefined;
      return part === "codes"
        ? codes.subarray(begin * columns, end * columns)
        : (part === "scales" ? scales : offsets)
          .subarray(begin * groups, end * groups);
    },
  };
}

/** Refuse columns of a group that do not follow each other. */
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
  readonly columns: number;
  readonly groups: number;
}

/** Scales and offsets of `[groups, rows]`, transposed; `zero` is the zero point of a group and row. */
function numbersOf(
  scales: Float32Array,
  { rows, groups }: Sizes,
  zero: (group: number, row: number) => number,
): Pick<Transposed, "scales" | "offsets"> {
  const transposed = new Float32Array(rows * groups);
  const offsets = new Float32Array(rows * groups);
  for (let row = 0; row < rows; row++) {
    for (let group = 0; group < groups; group++) {
      const scale = scales[group * rows + row]!;
      transposed[row * groups + group] = scale;
      offsets[row * groups + group] = -scale * zero(group, row);
    }
  }
  return { scales: transposed, offsets };
}

function transposedGptq(
  words: Uint32Array,
  zeros: Uint32Array,
  scales: Float32Array,
  sizes: Sizes,
): Transposed {
  const { rows, columns } = sizes;
  const codes = new Uint8Array(rows * columns);
  for (let column = 0; column < columns; column++) {
    for (let row = 0; row < rows; row++) {
      codes[row * columns + column] =
        (words[(column >> 3) * rows + row]! >>> (4 * (column & 7))) & 15;
    }
  }
  const points = codesOf(zeros, 4);
  const width = points.length / sizes.groups;
  // Files have one less than the zero point.
  return {
    codes,
    ...numbersOf(
      scales,
      sizes,
      (group, row) => points[group * width + row]! + 1,
    ),
  };
}

function transposedAwq(
  words: Uint32Array,
  zeros: Uint32Array,
  scales: Float32Array,
  sizes: Sizes,
): Transposed {
  const { rows, columns } = sizes;
  const place = (row: number) => 4 * AWQ_ORDER.indexOf(row & 7);
  const codes = new Uint8Array(rows * columns);
  for (let column = 0; column < columns; column++) {
    for (let row = 0; row < rows; row++) {
      codes[row * columns + column] =
        (words[column * rows / 8 + (row >> 3)]! >>> place(row)) & 15;
    }
  }
  return {
    codes,
    ...numbersOf(
      scales,
      sizes,
      (group, row) =>
        (zeros[group * rows / 8 + (row >> 3)]! >>> place(row)) & 15,
    ),
  };
}
