/**
 * Weights whose elements share words along the contracted axis, and have scales: one table. An element kind says what
 * codes stand for; an encoding is an element kind with the number of neighbours that share a scale. Kernels decode them
 * by `compiler/kernels/pieces/decode.ts`; `engine/encodings/` reads them from the layouts of published files.
 */

import type { FileDType } from "./dtype.ts";

/** A kind of elements. */
export interface PackedElement {
  /** Bits of a code. */
  readonly bits: 4 | 8;
  /** The number that a code stands for, exact in f32. */
  readonly value: (code: number) => number;
  /** What integers are multiplied by to give the numbers of codes. Absent: the numbers are no such products. */
  readonly step?: 1 | 0.5;
  /** Each scale has an offset, which is added to the scaled element. */
  readonly offset?: true;
}

/** The magnitudes of E2M1, a float of four bits. */
const E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6];

/** The table of llama.cpp's IQ4_NL. */
export const IQ4_VALUES = [
  -127,
  -104,
  -83,
  -65,
  -49,
  -35,
  -22,
  -10,
  1,
  13,
  25,
  38,
  53,
  69,
  89,
  113,
] as const;

/** Element kinds. */
export const PACKED_ELEMENTS = {
  // E2M1: sign, two bits of exponent, one of mantissa.
  fp4: {
    bits: 4,
    step: 0.5,
    value: (code) => (code & 8 ? -1 : 1) * E2M1[code & 7]!,
  },
  // E4M3 without infinities; the two NaNs (0x7f, 0xff) are refused when files are read.
  fp8: {
    bits: 8,
    value: (code) => {
      const [exponent, mantissa] = [(code >> 3) & 15, code & 7];
      const magnitude = exponent === 0
        ? mantissa * 2 ** -9
        : (8 + mantissa) * 2 ** (exponent - 10);
      return code & 128 ? -magnitude : magnitude;
    },
  },
  int4: { bits: 4, step: 1, value: (code) => code - 8 },
  int8: { bits: 8, step: 1, value: (code) => (code ^ 128) - 128 },
  uint4: { bits: 4, step: 1, value: (code) => code, offset: true },
  uint8: { bits: 8, step: 1, value: (code) => code, offset: true },
  iq4: { bits: 4, step: 1, value: (code) => IQ4_VALUES[code]! },
} as const satisfies { readonly [name: string]: PackedElement };

/** A name in the table. */
export type PackedElementName = keyof typeof PACKED_ELEMENTS;

/** How many neighbours of the contracted axis may share a scale. */
export const GROUP_SIZES = [4, 8, 16, 32, 64, 128] as const;

type GroupSize = typeof GROUP_SIZES[number];

/** How a matrix is packed. In files, the contracted axis is the last. */
export interface Packing {
  /** What people call it. */
  readonly title: string;
  readonly element: PackedElementName;
  /** Elements in a word of 32 bits: a power of two. */
  readonly perWord: number;
  /** Neighbouring elements of the contracted axis that share a scale: a power of two. Absent: all of them. */
  readonly perScale?: number;
  /** What kernels read a scale as; of `u32`, files have a byte. */
  readonly scale: "u32" | "f32";
  /** What the names of a parameter's tensors end in: elements, scales, and offsets where the element kind has them. */
  readonly names: {
    readonly elements: string;
    readonly scales: string;
    readonly offsets?: string;
  };
  /** How safetensors files have it as kernels read it. Absent: it is read from other layouts. */
  readonly file?: {
    /** The dtype of elements. */
    readonly dtype: string;
    /** What `quantization_config` says; of compressed-tensors, with the fields of its first group's `weights`. */
    readonly config: { readonly [field: string]: unknown };
    /** Published checkpoints store only experts so. */
    readonly expertsOnly?: true;
  };
}

/** Encodings that files have as kernels read them. */
const FILED = {
  // Four-bit floats (E2M1), and a power of two (E8M0) for each 32.
  mxfp4: {
    title: "MXFP4",
    element: "fp4",
    perWord: 8,
    perScale: 32,
    scale: "u32",
    names: { elements: "_blocks", scales: "_scales" },
    file: {
      dtype: "U8",
      config: { quant_method: "mxfp4" },
      expertsOnly: true,
    },
  },
  // compressed-tensors, `int-quantized`: a factor for each output channel.
  int8: {
    title: "int8",
    element: "int8",
    perWord: 4,
    scale: "f32",
    names: { elements: "", scales: "_scale" },
    file: {
      dtype: "I8",
      config: {
        quant_method: "compressed-tensors",
        format: "int-quantized",
        type: "int",
        num_bits: 8,
        strategy: "channel",
      },
    },
  },
} as const satisfies { readonly [name: string]: Packing };

/** An element kind with an f32 scale for each group: `int4x32`. */
export type GroupedDType = `${PackedElementName}x${GroupSize}`;

/** The name of an element kind with groups of a size. */
export function groupedDType(
  element: PackedElementName,
  group: GroupSize,
): GroupedDType {
  return `${element}x${group}`;
}

/** A name in the table. */
export type PackedDType = keyof typeof FILED | GroupedDType;

/** What the names of the tensors of a parameter with elements of a kind end in. */
function namesOf(element: PackedElementName): Packing["names"] {
  const { offset }: PackedElement = PACKED_ELEMENTS[element];
  return {
    elements: `:${element}`,
    scales: `:${element}_scales`,
    ...offset ? { offsets: `:${element}_offsets` } : {},
  };
}

function grouped(element: PackedElementName, perScale: GroupSize): Packing {
  const { bits }: PackedElement = PACKED_ELEMENTS[element];
  return {
    title: `${element} in groups of ${perScale}`,
    element,
    perWord: 32 / bits,
    perScale,
    scale: "f32",
    names: namesOf(element),
  };
}

/** The encodings. */
export const PACKINGS: { readonly [D in PackedDType]: Packing } = {
  ...FILED,
  ...Object.fromEntries(
    (Object.keys(PACKED_ELEMENTS) as PackedElementName[]).flatMap((element) =>
      GROUP_SIZES.filter((size) => size >= 32 / PACKED_ELEMENTS[element].bits)
        .map((size) => [groupedDType(element, size), grouped(element, size)])
    ),
  ) as { readonly [D in GroupedDType]: Packing },
};

/** Ranks that may share the columns of a matrix without splitting a group, where its width allows it. */
const SHARING_RANKS = 8;

/**
 * The encoding that kernels read a matrix as, of which `group` columns share a scale: the largest groups that divide those and
 * a row. Undefined where rows do not consist of whole words.
 */
export function packedDTypeOf(
  element: PackedElementName,
  { columns, group }: { readonly columns: number; readonly group: number },
): GroupedDType | undefined {
  const perWord = 32 / PACKED_ELEMENTS[element].bits;
  const fits = GROUP_SIZES.filter((size) =>
    size >= perWord && group % size === 0 && columns % size === 0
  );
  const shared = fits.filter((size) => columns / SHARING_RANKS % size === 0);
  const size = shared.at(-1) ?? fits[0];
  return size && groupedDType(element, size);
}

/** The names in the table. */
export const PACKED_DTYPES = Object.keys(PACKINGS) as readonly PackedDType[];

/** Those that `--dtype` and configurations name. */
export const FILED_DTYPES = Object.keys(
  FILED,
) as readonly (keyof typeof FILED)[];

/** Whether weights of a dtype are packed. */
export function isPackedDType(dtype: FileDType): dtype is PackedDType {
  return Object.hasOwn(PACKINGS, dtype);
}

/** How weights of a dtype are packed; undefined where each element has its own bytes. */
export function packingOf(
  dtype: FileDType | undefined,
): Packing | undefined {
  return dtype !== undefined && isPackedDType(dtype)
    ? PACKINGS[dtype]
    : undefined;
}

/** What a tensor holds of a parameter that is packed. */
export interface PackedPart {
  readonly dtype: keyof typeof FILED;
  readonly param: string;
  readonly part: "elements" | "scales";
}

/** What a weight of a plan holds of a parameter that is packed: what people call its elements, and how many of it are in a word. */
export interface PlannedPart {
  readonly title: string;
  /** Parameters of the model in a word; 0 of scales and offsets. */
  readonly perWord: number;
}

/** What weights of a plan hold of packed parameters, by the names of their tensors; `isWords` says which are stored as words. */
export function plannedParts(
  names: readonly string[],
  isWords: (name: string) => boolean,
): ReadonlyMap<string, PlannedPart> {
  const parts = new Map<string, PlannedPart>();
  for (
    const [name, { dtype, part }] of packedParts(names, (_, n) => isWords(n))
  ) {
    const { perWord } = PACKINGS[dtype];
    parts.set(name, {
      title: dtype,
      perWord: part === "elements" ? perWord : 0,
    });
  }
  for (const name of names) {
    const [, title, rest] = /:([a-z]+\d)(_[a-z]+)?$/.exec(name) ?? [];
    if (title === undefined || !Object.hasOwn(PACKED_ELEMENTS, title)) continue;
    const { bits } = PACKED_ELEMENTS[title as PackedElementName];
    parts.set(name, { title, perWord: rest === undefined ? 32 / bits : 0 });
  }
  return parts;
}

/** What each of these tensors of a file holds of a parameter that is packed as kernels read it, by name. */
export function packedParts(
  names: Iterable<string>,
  mayHold: (file: NonNullable<Packing["file"]>, name: string) => boolean,
): ReadonlyMap<string, PackedPart> {
  const all = new Set(names);
  const parts = new Map<string, PackedPart>();
  for (const dtype of FILED_DTYPES) {
    const { file, names: { elements, scales } } = FILED[dtype];
    for (const name of all) {
      if (!name.endsWith(elements) || !mayHold(file, name)) continue;
      const param = name.slice(0, name.length - elements.length);
      if (!all.has(param + scales) || name === param + scales) continue;
      parts.set(name, { dtype, param, part: "elements" });
      parts.set(param + scales, { dtype, param, part: "scales" });
    }
  }
  return parts;
}

/** The names of the buffers of a parameter that may be packed. */
export function partNames(param: string): string[] {
  return [
    ...new Set(
      Object.values(PACKINGS).flatMap(({ names }) => Object.values(names)),
    ),
  ].map((ending) => param + ending);
}

/** The encoding that a `quantization_config` describes, if files have it as kernels read it. */
export function packedBy(
  config: { readonly [field: string]: unknown },
): keyof typeof FILED | undefined {
  return FILED_DTYPES.find((dtype) =>
    Object.entries(FILED[dtype].file.config).every(([field, value]) =>
      config[field] === value
    )
  );
}
