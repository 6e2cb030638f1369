/** Weight encodings of checkpoints, with the bytes of a matrix. */

import type { BlockName } from "./blocks.ts";
import {
  BLOCK_DTYPES,
  FILED_DTYPES,
  PACKED_DTYPES,
  type PackedDType,
  packedDTypesOf,
  type PackedElementName,
  type Packing,
  PACKINGS,
  type ScaleKind,
  type ScaleName,
  SCALES,
  titleOf,
  type WordsDType,
} from "./packed.ts";
import { type FileDType, STORED_BYTES, type StoredDType } from "../dtype.ts";

/** A matrix in files: `rows` outputs of `columns` contracted elements each. A vector is one row. */
export interface MatrixShape {
  readonly rows: number;
  readonly columns: number;
}

/** Parameters of an encoding. Each entry reads the ones that it knows. */
export interface EncodingForm {
  /** Rows and columns per scale. Absent: the entire matrix. */
  readonly block?: readonly [rows: number, columns: number];
  /** Whether each row has a scale, if there are no blocks. */
  readonly channel?: boolean;
  /** Columns per scale. Default: 32 or 128, depending on the format. */
  readonly group?: number;
  /** Bits per element. Default: 4. */
  readonly bits?: number;
  /** Whether groups have a zero point besides their scale. */
  readonly zeros?: boolean;
}

/** An encoding of weights. */
export interface EncodingEntry {
  /** Display name. */
  readonly title: (form: EncodingForm) => string;
  /** Bytes of a matrix in a file, including scales and zero points. */
  readonly bytes: (shape: MatrixShape, form: EncodingForm) => number;
}

function plain(dtype: StoredDType): EncodingEntry {
  return {
    title: () => dtype,
    bytes: ({ rows, columns }) => rows * columns * STORED_BYTES[dtype],
  };
}

/** Number of 32-bit words for `count` elements. */
function words(count: number, bits: number): number {
  return Math.ceil(count * bits / 32);
}

function groups(columns: number, group: number): number {
  return Math.ceil(columns / group);
}

/** Words of elements, scales, offsets, and factors of rows. */
function packed(dtype: PackedDType): EncodingEntry {
  const { perWord, perScale, scale, names, block }: Packing = PACKINGS[dtype];
  const { stored, factor }: ScaleKind = SCALES[scale];
  if (block) {
    return {
      title: () => titleOf(dtype as BlockName | WordsDType),
      bytes: ({ rows, columns }) =>
        rows * groups(columns, block.elements) * block.bytes,
    };
  }
  return {
    title: () => dtype,
    bytes: ({ rows, columns }) =>
      rows * (4 * groups(columns, perWord) +
        (STORED_BYTES[stored] + (names.offsets ? 4 : 0)) *
          groups(columns, perScale ?? columns) +
        (factor ? 4 : 0)),
  };
}

/** The table. */
const WEIGHT_ENCODINGS = {
  f32: plain("f32"),
  f16: plain("f16"),
  bf16: plain("bf16"),
  i32: plain("i32"),
  u32: plain("u32"),
  u8: plain("u8"),
  ...Object.fromEntries(
    PACKED_DTYPES.map((dtype) => [dtype, packed(dtype)]),
  ) as { readonly [D in PackedDType]: EncodingEntry },
  // A byte (E4M3) per element, and an f32 per block: `weight_scale_inv`.
  fp8: {
    title: ({ block }) => block ? `fp8 ${block.join("x")}` : "fp8",
    bytes: (
      { rows, columns },
      { channel, block = [channel ? 1 : rows, columns] },
    ) =>
      rows * columns +
      4 * Math.ceil(rows / block[0]) * Math.ceil(columns / block[1]),
  },
  // A byte (E4M3) per element, and a power of two (E8M0) per 32.
  mxfp8: {
    title: () => "mxfp8",
    bytes: ({ rows, columns }) => rows * (columns + groups(columns, 32)),
  },
  // 4-bit floats (E2M1), an E4M3 per 16, and an f32 per matrix.
  nvfp4: {
    title: () => "nvfp4",
    bytes: ({ rows, columns }) =>
      rows * (columns / 2 + groups(columns, 16)) + 4,
  },
  // compressed-tensors, `pack-quantized`: words along rows, a bf16 per group, and the shape in two i32.
  int4: {
    title: ({ bits = 4, group = 32 }) => `int${bits} group ${group}`,
    bytes: ({ rows, columns }, { bits = 4, group = 32, zeros = false }) =>
      rows * words(columns, bits) * 4 +
      groups(columns, group) *
        (2 * rows + (zeros ? 4 * words(rows, bits) : 0)) +
      8,
  },
  // Words along columns; an f16 and a zero point per group and row; the group of each column in an i32.
  gptq: {
    title: ({ bits = 4, group = 128 }) => `gptq ${bits} bits, group ${group}`,
    bytes: ({ rows, columns }, { bits = 4, group = 128 }) =>
      rows * words(columns, bits) * 4 +
      groups(columns, group) * (2 * rows + 4 * words(rows, bits)) +
      4 * columns,
  },
  // Words along rows; an f16 per group and row, and a zero point.
  awq: {
    title: ({ bits = 4, group = 128 }) => `awq ${bits} bits, group ${group}`,
    bytes: (
      { rows, columns },
      { bits = 4, group = 128, zeros = true },
    ) =>
      columns * words(rows, bits) * 4 +
      groups(columns, group) * (2 * rows + (zeros ? 4 * words(rows, bits) : 0)),
  },
} as const satisfies
  & { readonly [name: string]: EncodingEntry }
  & { readonly [D in FileDType]: EncodingEntry };

/** A name in the table. */
export type EncodingName = keyof typeof WEIGHT_ENCODINGS;

/** Encodings of published weights that users can name. */
export const STORED_NAMES: readonly EncodingName[] = [
  ...["f32", "f16", "bf16", "fp8"] as const,
  ...FILED_DTYPES,
  ...BLOCK_DTYPES.filter((name) => name !== "mxfp4_block"),
  ...["int4", "gptq", "awq", "nvfp4", "mxfp8"] as const,
];

/** Encoding of a weight: an entry of the table, and its parameters. */
export interface WeightEncoding extends EncodingForm {
  readonly name: EncodingName;
}

function entryOf({ name }: WeightEncoding): EncodingEntry {
  return WEIGHT_ENCODINGS[name];
}

/** Bytes of a matrix in an encoding. */
export function encodedBytes(
  encoding: WeightEncoding,
  shape: MatrixShape,
): number {
  return entryOf(encoding).bytes(shape, encoding);
}

/** Display name of an encoding: `fp8 128x128`. */
export function encodingTitle(encoding: WeightEncoding): string {
  return entryOf(encoding).title(encoding);
}

/** The encoding in which a plan reads the rows of a weight: the stored one, or its replacement; else f32. */
export function fileDTypeOf(
  encoding: WeightEncoding,
  columns: number,
): FileDType {
  const { name } = encoding;
  if (isFileDType(name)) return name;
  const { element, group = columns, ...rest } = READ_AS[name](encoding);
  return packedDTypesOf(element, { columns, group, ...rest })[0] ?? "f32";
}

/** Encodings that are converted to others on read. */
const READ_AS: {
  readonly [N in Exclude<EncodingName, FileDType>]: (
    form: EncodingForm,
  ) => {
    readonly element: PackedElementName;
    readonly group?: number;
    readonly scale?: ScaleName;
  };
} = {
  fp8: ({ block = [128, 128] }) => ({ element: "fp8", group: block[1] }),
  mxfp8: () => ({ element: "fp8", group: 32 }),
  nvfp4: () => ({ element: "fp4", group: 16 }),
  int4: ({ group = 32, zeros = false }) => ({
    element: zeros ? "uint4" : "int4",
    group,
    scale: zeros ? "bf16_zero" : "bf16",
  }),
  gptq: ({ group = 128 }) => ({ element: "uint4", group, scale: "f16_zero" }),
  awq: ({ group = 128 }) => ({ element: "uint4", group, scale: "f16_zero" }),
};

/** Whether kernels read an encoding directly. */
export function isFileDType(name: EncodingName): name is FileDType {
  return !Object.hasOwn(READ_AS, name);
}
