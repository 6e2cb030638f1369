/**
 * A matrix of a checkpoint in any published layout, converted to the form of kernels: codes, scales and offsets row by
 * row, and as f32 for other readers. Views are read lazily.
 */

import {
  type BlockName,
  type BlockParts,
  BLOCKS,
} from "../../spec/weights/blocks.ts";
import {
  type HalfDType,
  STORED_BYTES,
  type StoredDType,
} from "../../spec/dtype.ts";
import { narrow } from "../../runtime/half.ts";
import {
  PACKED_ELEMENTS,
  type PackedDType,
  packedDTypesOf,
  type PackedElement,
  type PackedElementName,
  type Packing,
  PACKINGS,
  repackedDTypes,
  type ScaleKind,
  type ScaleName,
  SCALES,
  wordsDType,
} from "../../spec/weights/packed.ts";
import type { FileSource, TensorEntry } from "../../runtime/mod.ts";

/** A part of a matrix. */
export type Part = keyof Parts | "factors";

/** A matrix: `rows` outputs of `columns` contracted elements. */
export interface StoredMatrix {
  /** Name of the parameter in the model. */
  readonly param: string;
  /** Its source tensors. */
  readonly of: readonly string[];
  readonly rows: number;
  readonly columns: number;
  /** Experts, if the tensor has an axis of them: each has an equal part of the rows. */
  readonly experts?: number;
  readonly element: PackedElementName;
  /** Columns per scale; the last group of a row may be shorter. */
  readonly group: number;
  /** Kind of all scales, if not f32: with 16 bits, or powers of two, one per 32 columns (MXFP4). */
  readonly scale?: Exclude<ScaleName, "f32" | "e4m3">;
  /** Codes as stored in the file, if kernels can read them: words along the columns. */
  readonly codes?: TensorEntry;
  /** The bytes of the file, if they are blocks that kernels can read. */
  readonly blocks?: {
    readonly name: BlockName;
    readonly source: FileSource;
    readonly offset: number;
    /** Reads the blocks of rows, rearranged in words. Throws DataError for non-finite values. */
    words(begin: number, end: number): Promise<Uint8Array>;
  };
  /**
   * Reads rows of a part: a byte per code or zero point, an f32 per row, a byte per scale if rows have factors, else an
   * f32. Throws DataError for non-finite values.
   */
  read(
    part: Part,
    begin: number,
    end: number,
  ): Promise<Uint8Array | Float32Array>;
  /** Reads rows of all parts, for layouts where reading one costs as much as all. */
  readAll?(begin: number, end: number): Promise<Parts>;
}

/** Rows of a matrix. */
export type Parts = BlockParts;

/** The parts of rows, with scales times factors. */
async function partsOf(
  matrix: StoredMatrix,
  begin: number,
  end: number,
): Promise<Parts> {
  const { read, readAll, element } = matrix;
  if (readAll) return await readAll(begin, end);
  const { offset }: PackedElement = PACKED_ELEMENTS[element];
  const stored = await read("scales", begin, end);
  const scales = stored instanceof Float32Array
    ? stored
    : timesFactors(stored, await read("factors", begin, end));
  return {
    codes: await read("codes", begin, end) as Uint8Array,
    scales,
    offsets: offset
      ? offsetsOf(scales, await read("offsets", begin, end))
      : new Float32Array(0),
  };
}

/** Offsets from zero points. */
function offsetsOf(
  scales: Float32Array,
  zeros: ArrayLike<number>,
): Float32Array {
  return scales.map((scale, i) => -scale * zeros[i]!);
}

/** Scales from their bytes in E4M3 and the factors of rows. */
function timesFactors(
  bytes: Uint8Array,
  factors: ArrayLike<number>,
): Float32Array {
  const groups = bytes.length / factors.length;
  return Float32Array.from(
    bytes,
    (byte, i) => SCALES.e4m3.value(byte) * factors[Math.floor(i / groups)]!,
  );
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

/** Sizes of the axes before the columns. */
function rowAxes({ experts, rows }: StoredMatrix): readonly number[] {
  return experts === undefined ? [rows] : [experts, rows / experts];
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
    shape: [...rowAxes(matrix), ...rowShape],
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
function regrouped<T extends Uint8Array | Float32Array>(
  values: T,
  { columns, group }: StoredMatrix,
  size: number,
): T {
  if (size === group) return values;
  const [from, to] = [Math.ceil(columns / group), columns / size];
  const rows = values.length / from;
  const all = new (values.constructor as new (length: number) => T)(rows * to);
  return all.map((_, i) => {
    const row = Math.floor(i / to);
    return values[row * from + Math.floor((i - row * to) * size / group)]!;
  }) as T;
}

/** The bytes of scales, which their kind represents exactly. */
const STORED_SCALES: {
  readonly [S in "f32" | "e8m0" | HalfDType]: (
    values: Float32Array,
  ) => Uint8Array;
} = {
  f32: bytesOf,
  f16: (values) => bytesOf(narrow("f16", values)),
  bf16: (values) => bytesOf(narrow("bf16", values)),
  // The exponents of powers of two.
  e8m0: (values) =>
    Uint8Array.from(
      new Uint32Array(values.buffer, values.byteOffset, values.length),
      (bits) => bits >>> 23,
    ),
};

/** 16-bit scales and zero points in the halves of words. */
function withZeros(scales: Uint8Array, zeros: ArrayLike<number>): Uint8Array {
  const halves = new Uint16Array(scales.buffer);
  return bytesOf(Uint32Array.from(halves, (half, i) => half | zeros[i]! << 16));
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
  const values = new Float32Array(codes.length);
  let at = 0;
  for (let row = 0; row < codes.length; row += columns) {
    for (let first = 0; first < columns; first += group) {
      const scale = scales[at]!;
      const end = row + Math.min(columns, first + group);
      for (let i = row + first; i < end; i++) {
        values[i] = table[codes[i]!]! * scale;
        if (offset) values[i]! += offsets[at]!;
      }
      at++;
    }
  }
  return values;
}

/** The bytes of blocks, and their words. */
function blocksOf(
  matrix: StoredMatrix,
  { name, source, offset, words }: NonNullable<StoredMatrix["blocks"]>,
): TensorEntry[] {
  const { param, rows, columns, of } = matrix;
  const { elements, bytes } = BLOCKS[name];
  const shape = [rows, columns / elements, bytes];
  const filed = {
    name: param + PACKINGS[name].names.elements,
    dtype: "U8",
    shape,
    source,
    offset,
    bytes: shape.reduce((n, size) => n * size, 1),
    of,
  };
  const dtype = wordsDType(name, columns);
  if (dtype === undefined) return [filed];
  const { names, block }: Packing = PACKINGS[dtype];
  const blocks = columns / block!.elements;
  return [
    filed,
    computed(matrix, {
      name: param + names.elements,
      dtype: "U32",
      rowShape: [blocks, block!.bytes / 4],
      rowBytes: blocks * block!.bytes,
      read: words,
    }),
  ];
}

/** The tensors of a matrix in an encoding. */
function packedViews(matrix: StoredMatrix, stored: PackedDType): TensorEntry[] {
  const { param, columns, codes } = matrix;
  const { names, perWord, perScale: size = columns, scale }: Packing =
    PACKINGS[stored];
  /** A number per group, as bytes. */
  const numbers = (
    name: string,
    dtype: StoredDType,
    read: (begin: number, end: number) => Promise<Uint8Array>,
  ) =>
    computed(matrix, {
      name: param + name,
      dtype: dtype.toUpperCase(),
      rowShape: [columns / size],
      rowBytes: STORED_BYTES[dtype] * columns / size,
      read,
    });
  const { stored: scaleType, beforeZero }: ScaleKind = SCALES[scale];
  const scales = numbers(names.scales, scaleType, async (begin, end) => {
    const read = async (part: Part) =>
      regrouped(await matrix.read(part, begin, end), matrix, size);
    const values = await read("scales");
    if (scale === "e4m3") return bytesOf(values);
    const kind = beforeZero ?? scale as "f32" | "e8m0";
    const bytes = STORED_SCALES[kind](values as Float32Array);
    return beforeZero ? withZeros(bytes, await read("offsets")) : bytes;
  });
  const offsets = names.offsets === undefined
    ? undefined
    : numbers(names.offsets, "f32", async (begin, end) => {
      const { offsets } = await partsOf(matrix, begin, end);
      return bytesOf(regrouped(offsets, matrix, size));
    });
  // Words of a group form a separate axis; bytes of a file are four per word.
  const inGroup = size / perWord;
  const groups = columns / size;
  const elements = codes
    ? {
      ...codes,
      name: param + names.elements,
      dtype: "U8",
      shape: [...rowAxes(matrix), groups, 4 * inGroup],
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
    elements,
    scales,
    ...offsets ? [offsets] : [],
    ...names.factors === undefined ? [] : [
      computed(matrix, {
        name: param + names.factors,
        dtype: "F32",
        rowShape: [],
        rowBytes: 4,
        read: async (begin, end) =>
          bytesOf(await matrix.read("factors", begin, end)),
      }),
    ],
  ];
}

/** The tensor names under which kernels and loaders find a matrix. */
export function viewsOf(matrix: StoredMatrix): TensorEntry[] {
  const { param, columns, element, blocks } = matrix;
  const decoded = computed(matrix, {
    name: param,
    dtype: "F32",
    rowShape: [columns],
    rowBytes: 4 * columns,
    read: async (begin, end) => bytesOf(await decodeRows(matrix, begin, end)),
  });
  const packed = blocks
    ? repackedDTypes(blocks.name, columns)
    : packedDTypesOf(element, matrix);
  const [largest] = packed;
  return [
    largest ? { ...decoded, packed: blocks?.name ?? largest } : decoded,
    ...blocks ? blocksOf(matrix, blocks) : [],
    ...packed.flatMap((stored) => packedViews(matrix, stored)),
  ];
}
