/**
 * A matrix of a checkpoint in any published layout, converted to the form of kernels: codes, scales and offsets row by
 * row, and as f32 for other readers. Views are read lazily.
 */

import {
  PACKED_ELEMENTS,
  packedDTypeOf,
  type PackedElement,
  type PackedElementName,
  PACKINGS,
} from "../../spec/packed.ts";
import type { FileSource, TensorEntry } from "../../runtime/mod.ts";

/** A part of a matrix. */
export type Part = keyof Parts;

/** A matrix: `rows` outputs of `columns` contracted elements. */
export interface StoredMatrix {
  /** Name of the parameter in the model. */
  readonly param: string;
  /** Its source tensors. */
  readonly of: readonly string[];
  readonly rows: number;
  readonly columns: number;
  readonly element: PackedElementName;
  /** Columns per scale; the last group of a row may be shorter. */
  readonly group: number;
  /** Codes as stored in the file, if kernels can read them: words along the columns. */
  readonly codes?: TensorEntry;
  /** Reads rows of a part: a byte per code, an f32 per scale or offset. Throws DataError for non-finite values. */
  read(
    part: Part,
    begin: number,
    end: number,
  ): Promise<Uint8Array | Float32Array>;
  /** Reads rows of all parts, for layouts where reading one costs as much as all. */
  readAll?(begin: number, end: number): Promise<Parts>;
}

/** Rows of a matrix. */
export interface Parts {
  readonly codes: Uint8Array;
  readonly scales: Float32Array;
  /** Empty if the element kind has no offsets. */
  readonly offsets: Float32Array;
}

async function partsOf(
  { read, readAll, element }: StoredMatrix,
  begin: number,
  end: number,
): Promise<Parts> {
  if (readAll) return await readAll(begin, end);
  const { offset }: PackedElement = PACKED_ELEMENTS[element];
  return {
    codes: await read("codes", begin, end) as Uint8Array,
    scales: await read("scales", begin, end) as Float32Array,
    offsets: offset
      ? await read("offsets", begin, end) as Float32Array
      : new Float32Array(0),
  };
}

/** Bytes that are computed row by row, as a source. `read` returns those of some rows. */
export function rowSource(
  name: string,
  { rows, rowBytes, read }: {
    readonly rows: number;
    readonly rowBytes: number;
    read(begin: number, end: number): Promise<Uint8Array>;
  },
): FileSource {
  return {
    name,
    size: rows * rowBytes,
    read: async (offset, length) => {
      const begin = Math.floor(offset / rowBytes);
      const end = Math.ceil((offset + length) / rowBytes);
      const bytes = await read(begin, end);
      const from = offset - begin * rowBytes;
      return bytes.subarray(from, from + length);
    },
  };
}

/** An entry with computed rows. `read` returns the bytes of some rows. */
function computed(
  matrix: StoredMatrix,
  { name, dtype, rowShape, rowBytes, read }: {
    readonly name: string;
    readonly dtype: string;
    readonly rowShape: readonly number[];
    readonly rowBytes: number;
    read(begin: number, end: number): Promise<Uint8Array>;
  },
): TensorEntry {
  const { rows, of } = matrix;
  const source = rowSource(of[0]!, { rows, rowBytes, read });
  return {
    name,
    dtype,
    shape: [rows, ...rowShape],
    source,
    offset: 0,
    bytes: source.size,
    of,
  };
}

function bytesOf(
  { buffer, byteOffset, byteLength }: ArrayBufferView,
): Uint8Array {
  return new Uint8Array(buffer, byteOffset, byteLength);
}

/** Four-bit codes, two per byte, first in the low bits. */
function halved(codes: Uint8Array): Uint8Array {
  return Uint8Array.from(
    { length: codes.length / 2 },
    (_, i) => codes[2 * i]! | codes[2 * i + 1]! << 4,
  );
}

/** Resamples one number per `group` columns to one per `size` columns. */
function regrouped(
  values: Float32Array,
  { columns, group }: StoredMatrix,
  size: number,
): Float32Array {
  if (size === group) return values;
  const [from, to] = [Math.ceil(columns / group), columns / size];
  const rows = values.length / from;
  return Float32Array.from({ length: rows * to }, (_, i) => {
    const row = Math.floor(i / to);
    return values[row * from + Math.floor((i - row * to) * size / group)]!;
  });
}

/** The matrix as f32, by the arithmetic of kernels: element times scale, then plus offset, each rounded. */
async function decodeRows(
  matrix: StoredMatrix,
  begin: number,
  end: number,
): Promise<Float32Array> {
  const { columns, group, element } = matrix;
  const { bits, value, offset }: PackedElement = PACKED_ELEMENTS[element];
  const table = Float32Array.from(
    { length: 1 << bits },
    (_, code) => value(code),
  );
  const { codes, scales, offsets } = await partsOf(matrix, begin, end);
  const groups = Math.ceil(columns / group);
  return Float32Array.from(codes, (code, i) => {
    const row = Math.floor(i / columns);
    const at = row * groups + Math.floor((i - row * columns) / group);
    const scaled = Math.fround(table[code]! * scales[at]!);
    return offset ? scaled + offsets[at]! : scaled;
  });
}

/** The tensor names under which kernels and loaders find a matrix. */
export function viewsOf(matrix: StoredMatrix): TensorEntry[] {
  const { param, columns, element, codes } = matrix;
  const decoded = computed(matrix, {
    name: param,
    dtype: "F32",
    rowShape: [columns],
    rowBytes: 4 * columns,
    read: async (begin, end) => bytesOf(await decodeRows(matrix, begin, end)),
  });
  const packed = packedDTypeOf(element, matrix);
  if (packed === undefined) return [decoded];
  const { names, perWord, perScale: size = columns } = PACKINGS[packed];
  const numbers = (part: "scales" | "offsets", ending: string) =>
    computed(matrix, {
      name: param + ending,
      dtype: "F32",
      rowShape: [columns / size],
      rowBytes: 4 * columns / size,
      read: async (begin, end) =>
        bytesOf(
          regrouped(
            await matrix.read(part, begin, end) as Float32Array,
            matrix,
            size,
          ),
        ),
    });
  // Words of a group form a separate axis; bytes of a file are four per word.
  const inGroup = size / perWord;
  const groups = columns / size;
  const elements = codes
    ? {
      ...codes,
      name: param + names.elements,
      dtype: "U8",
      shape: [matrix.rows, groups, 4 * inGroup],
      of: matrix.of,
    }
    : computed(matrix, {
      name: param + names.elements,
      dtype: "U32",
      rowShape: [groups, inGroup],
      rowBytes: 4 * groups * inGroup,
      read: async (begin, end) => {
        const read = await matrix.read("codes", begin, end) as Uint8Array;
        return perWord === 8 ? halved(read) : read;
      },
    });
  return [
    { ...decoded, packed },
    elements,
    numbers("scales", names.scales),
    ...names.offsets === undefined ? [] : [numbers("offsets", names.offsets)],
  ];
}
