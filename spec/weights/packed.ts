/**
 * Packed weights: elements that share words along the contracted axis, with scales. An element kind defines the values
 * of codes; an encoding is an element kind with a group size per scale. `compiler/kernels/pieces/decode.ts` decodes
 * them in kernels; `engine/encodings/` reads them from published layouts.
 */

import { type Block, type BlockName, BLOCKS } from "./blocks.ts";
import type { FileDType, HalfDType } from "../dtype.ts";
import { inWords } from "./word_blocks.ts";

/** An element kind. */
export interface PackedElement {
  /** Bits per code. */
  readonly bits: 4 | 8;
  /** The value of a code, exact in f32. */
  readonly value: (code: number) => number;
  /** The largest magnitude, if codes of larger values are rejected. */
  readonly largest?: number;
  /** Factor from integers to the values of codes. Absent: values are not multiples. */
  readonly step?: 1 | 0.5;
  /** Whether each scale has an offset, which is added to the scaled element. */
  readonly offset?: true;
  /** Kinds of the scales of groups (`SCALES`). Names of encodings omit the first. Default: f32. */
  readonly scales?: readonly Exclude<ScaleName, "e8m0">[];
}

/** The magnitudes of E2M1, a 4-bit float. */
const E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6];

/** The value of a code of E4M3. */
function fp8(code: number): number {
  const [exponent, mantissa] = [(code >> 3) & 15, code & 7];
  const magnitude = exponent === 0
    ? mantissa * 2 ** -9
    : (8 + mantissa) * 2 ** (exponent - 10);
  return code & 128 ? -magnitude : magnitude;
}

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
  // E2M1: sign, two exponent bits, one mantissa bit. In groups: NVFP4.
  fp4: {
    bits: 4,
    step: 0.5,
    scales: ["e4m3"],
    value: (code) => (code & 8 ? -1 : 1) * E2M1[code & 7]!,
  },
  // E4M3 without infinities; the two NaNs (0x7f, 0xff) are rejected when files are read.
  fp8: { bits: 8, largest: 448, value: fp8 },
  int4: {
    bits: 4,
    step: 1,
    scales: ["f32", "f16", "bf16"],
    value: (code) => code - 8,
  },
  int8: { bits: 8, step: 1, value: (code) => (code ^ 128) - 128 },
  uint4: {
    bits: 4,
    step: 1,
    scales: ["f32", "f16_zero", "bf16_zero"],
    value: (code) => code,
    offset: true,
  },
  uint8: { bits: 8, step: 1, value: (code) => code, offset: true },
  iq4: { bits: 4, step: 1, value: (code) => IQ4_VALUES[code]! },
} as const satisfies { readonly [name: string]: PackedElement };

/** A name in the table. */
export type PackedElementName = keyof typeof PACKED_ELEMENTS;

/** A kind of scale. `compiler/kernels/pieces/decode.ts` decodes it in kernels. */
export interface ScaleKind {
  /** Its dtype in memory. */
  readonly stored: "u8" | "u32" | "f16" | "bf16" | "f32";
  /** The value of a byte. */
  readonly value?: (byte: number) => number;
  /** Whether each row has an f32 factor. The scale is the f32 nearest to the product of stored value and factor. */
  readonly factor?: true;
  /**
   * Dtype of a scale in the lower half of its word. The upper half is the zero point of the group: its offset is minus
   * their product, rounded.
   */
  readonly beforeZero?: HalfDType;
}

/** Kinds of scales. */
export const SCALES = {
  f32: { stored: "f32" },
  f16: { stored: "f16" },
  bf16: { stored: "bf16" },
  f16_zero: { stored: "u32", beforeZero: "f16" },
  bf16_zero: { stored: "u32", beforeZero: "bf16" },
  // A power of two.
  e8m0: { stored: "u8", value: (byte) => 2 ** (byte - 127) },
  e4m3: { stored: "u8", value: fp8, factor: true },
} as const satisfies { readonly [name: string]: ScaleKind };

/** A name in the table. */
export type ScaleName = keyof typeof SCALES;

/** Group sizes per scale along the contracted axis. */
const GROUP_SIZES = [4, 8, 16, 32, 64, 128] as const;

type GroupSize = typeof GROUP_SIZES[number];

/** Packing of a matrix. In files, the contracted axis is the last. */
export interface Packing {
  /** Display name. */
  readonly title: string;
  readonly element: PackedElementName;
  /** Elements per 32-bit word: a power of two. */
  readonly perWord: number;
  /** Adjacent elements of the contracted axis per scale: a power of two. Absent: all of them. */
  readonly perScale?: number;
  /** Kind of its scales. */
  readonly scale: ScaleName;
  /** Suffixes of a parameter's tensor names: elements, scales, and offsets and factors if they are separate. */
  readonly names: {
    readonly elements: string;
    readonly scales: string;
    readonly offsets?: string;
    readonly factors?: string;
  };
  /** Elements, scales and offsets are in the blocks of GGUF files, in one tensor. */
  readonly block?: Block;
  /** Blocks are rearranged: words, of adjacent columns unless rows are complete. */
  readonly inWords?: true;
  /** Layout in safetensors files that kernels can read. Absent: it is read from other layouts. */
  readonly file?: {
    /** The dtype of elements. */
    readonly dtype: string;
    /** The matching `quantization_config`; for compressed-tensors, the fields of its first group's `weights`. */
    readonly config: { readonly [field: string]: unknown };
    /** Whether published checkpoints store only experts in it. */
    readonly expertsOnly?: true;
  };
}

/** Encodings that kernels read directly from files. */
const FILED = {
  // 4-bit floats (E2M1), and a power of two (E8M0) per 32.
  mxfp4: {
    title: "MXFP4",
    element: "fp4",
    perWord: 8,
    perScale: 32,
    scale: "e8m0",
    names: { elements: "_blocks", scales: "_scales" },
    file: {
      dtype: "U8",
      config: { quant_method: "mxfp4" },
      expertsOnly: true,
    },
  },
  // compressed-tensors, `int-quantized`: a scale per output channel.
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

/** An element kind with a scale per group: `int4x32`, or `int4x32_bf16` with scales in bf16. */
export type GroupedDType =
  | `${PackedElementName}x${GroupSize}`
  | `int4x${GroupSize}_${HalfDType}`
  | `uint4x${GroupSize}_${HalfDType}_zero`;

/** The encodings of an element kind with groups of a size, by kind of scales. */
function groupedBy(
  element: PackedElementName,
  group: GroupSize,
): readonly (readonly [GroupedDType, ScaleName])[] {
  const { scales = ["f32"] }: PackedElement = PACKED_ELEMENTS[element];
  return scales.map((scale, i) => [
    `${element}x${group}${i === 0 ? "" : `_${scale}`}` as GroupedDType,
    scale,
  ]);
}

/**
 * The name of an element kind with groups of a size. `scale`: kind of scales, if the element kind has it. Default: its
 * first.
 */
export function groupedDType(
  element: PackedElementName,
  group: GroupSize,
  scale?: ScaleName,
): GroupedDType {
  const all = groupedBy(element, group);
  return (all.find(([, kind]) => kind === scale) ?? all[0]!)[0];
}

/** Blocks that are rearranged for kernels that load words. The others have bytes of scales or elements anyway. */
export type WordsDType = `${Exclude<
  BlockName,
  "q8_0" | "mxfp4_block"
>}_words`;

/** A name in the table. */
export type PackedDType =
  | keyof typeof FILED
  | GroupedDType
  | BlockName
  | WordsDType;

function grouped(
  name: GroupedDType,
  element: PackedElementName,
  { perScale, scale }: {
    readonly perScale: GroupSize;
    readonly scale: ScaleName;
  },
): Packing {
  const { bits, offset }: PackedElement = PACKED_ELEMENTS[element];
  const { factor, beforeZero }: ScaleKind = SCALES[scale];
  return {
    title: `${element} in groups of ${perScale}`,
    element,
    perWord: 32 / bits,
    perScale,
    scale,
    names: {
      elements: `:${name}`,
      scales: `:${name}_scales`,
      ...offset && !beforeZero ? { offsets: `:${name}_offsets` } : {},
      ...factor ? { factors: `:${name}_factors` } : {},
    },
  };
}

/** Rows of blocks. */
function inBlocks(name: BlockName | WordsDType, block: Block): Packing {
  const elements = `:${name}`;
  return {
    title: `blocks of ${titleOf(name)}`,
    element: block.element,
    perWord: 4,
    perScale: block.group,
    scale: "f32",
    names: { elements, scales: elements },
    block,
  };
}

/** Name of a block in GGUF files: `Q4_K`. */
export function titleOf(name: BlockName | WordsDType): string {
  return name.replace(/_block|_words/, "").toUpperCase();
}

/** The encodings of blocks. */
export const BLOCK_DTYPES = Object.keys(BLOCKS) as readonly BlockName[];

/** The encodings of rearranged blocks, with the blocks of files. */
const WORDS = BLOCK_DTYPES
  .filter((name) => name !== "q8_0" && name !== "mxfp4_block")
  .map((name) => [`${name}_words`, name] as const);

/** The encodings of rearranged blocks. */
export const WORDS_DTYPES: readonly WordsDType[] = WORDS.map(([name]) => name);

/** The encodings. */
export const PACKINGS: { readonly [D in PackedDType]: Packing } = {
  ...FILED,
  ...Object.fromEntries(
    BLOCK_DTYPES.map((name) => [name, inBlocks(name, BLOCKS[name])]),
  ) as { readonly [N in BlockName]: Packing },
  ...Object.fromEntries(
    WORDS.map(([name, file]) => [name, {
      ...inBlocks(name, inWords(BLOCKS[file])),
      inWords: true,
    }]),
  ) as { readonly [N in WordsDType]: Packing },
  ...Object.fromEntries(
    (Object.keys(PACKED_ELEMENTS) as PackedElementName[]).flatMap((element) =>
      GROUP_SIZES.filter((size) => size >= 32 / PACKED_ELEMENTS[element].bits)
        .flatMap((size) =>
          groupedBy(element, size).map((
            [name, scale],
          ) => [name, grouped(name, element, { perScale: size, scale })])
        )
    ),
  ) as { readonly [D in GroupedDType]: Packing },
};

/** Ranks that can share the columns of a matrix without splitting a group, if its width allows it. */
const SHARING_RANKS = 8;

/**
 * The encodings in which kernels can read a matrix with a scale per `group` columns, by decreasing groups: from the
 * largest that divide `group` and a row to the largest that 8 ranks need not split. `scale`: kind of its scales. MXFP4
 * has powers of two. Empty if rows do not consist of complete words.
 */
export function packedDTypesOf(
  element: PackedElementName,
  { columns, group, scale }: {
    readonly columns: number;
    readonly group: number;
    readonly scale?: ScaleName;
  },
): readonly (GroupedDType | "mxfp4")[] {
  if (scale === "e8m0") return ["mxfp4"];
  const { bits, step }: PackedElement = PACKED_ELEMENTS[element];
  const fits = GROUP_SIZES.filter((size) =>
    size >= 32 / bits && group % size === 0 && columns % size === 0
  );
  const shared = fits.findLast((size) => columns / SHARING_RANKS % size === 0);
  // Integer sums are not split, whatever ranks could share: see `q8SumOf`.
  const sums = step === undefined ? [] : step === 1 ? [32, 16] : [32];
  const least = sums.find((size) => fits.some((fit) => fit === size)) ?? 0;
  const from = Math.max(shared ?? fits[0] ?? 0, least);
  return fits.filter((size) => size >= from)
    .map((size) => groupedDType(element, size, scale)).reverse();
}

/** The encoding of a matrix in blocks for kernels that load words. Undefined: there is none. */
export function wordsDType(
  name: BlockName,
  columns: number,
): WordsDType | undefined {
  const found = WORDS.find(([, file]) => file === name)?.[0];
  return found && columns % PACKINGS[found].block!.elements === 0
    ? found
    : undefined;
}

/** The encodings of a matrix in blocks for devices and ranks that cannot read them: see `packedDTypesOf`. */
export function repackedDTypes(
  name: BlockName,
  columns: number,
): readonly (GroupedDType | "mxfp4")[] {
  // Its scales are bytes.
  if (name === "mxfp4_block") return ["mxfp4"];
  const { element, group } = BLOCKS[name];
  return packedDTypesOf(element, { columns, group });
}

/** The names in the table. */
export const PACKED_DTYPES = Object.keys(PACKINGS) as readonly PackedDType[];

/** Encodings that `--dtype` and configurations can name. */
export const FILED_DTYPES = Object.keys(
  FILED,
) as readonly (keyof typeof FILED)[];

/** Whether weights of a dtype are packed. */
export function isPackedDType(dtype: FileDType): dtype is PackedDType {
  return Object.hasOwn(PACKINGS, dtype);
}

/** Whether weights of a dtype are blocks of GGUF files. */
export function isBlockDType(dtype: FileDType): dtype is BlockName {
  return Object.hasOwn(BLOCKS, dtype);
}

/** The packing of weights of a dtype. Undefined if each element has separate bytes. */
export function packingOf(
  dtype: FileDType | undefined,
): Packing | undefined {
  return dtype !== undefined && isPackedDType(dtype)
    ? PACKINGS[dtype]
    : undefined;
}

/** The contents of a tensor of a packed parameter. */
export interface PackedPart {
  readonly dtype: keyof typeof FILED;
  readonly param: string;
  readonly part: "elements" | "scales";
}

/**
 * The contents of a weight of a packed parameter in a plan: the display name of its elements, and their number per
 * word.
 */
export interface PlannedPart {
  readonly title: string;
  /** Model parameters per word, or per byte of blocks; 0 for scales and offsets. */
  readonly perWord: number;
}

/** The contents of weights of packed parameters in a plan, by tensor name. `isWords`: which are stored as words. */
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
    const part = VIEW_PARTS.get(name.slice(name.lastIndexOf(":")));
    if (part !== undefined) parts.set(name, part);
  }
  return parts;
}

/** The contents of views of encodings that are not read directly from safetensors files, by suffix. */
const VIEW_PARTS: ReadonlyMap<string, PlannedPart> = new Map(
  PACKED_DTYPES.filter((dtype) => !Object.hasOwn(FILED, dtype))
    .flatMap((dtype) => partsOfView(dtype)),
);

function partsOfView(
  dtype: PackedDType,
): (readonly [suffix: string, PlannedPart])[] {
  const { element, perWord, names, block, inWords }: Packing = PACKINGS[dtype];
  if (!block) {
    return Object.entries(names).map(([part, suffix]) => [suffix, {
      title: element,
      perWord: part === "elements" ? perWord : 0,
    }]);
  }
  const { elements, bytes } = block;
  return [[names.elements, {
    title: titleOf(dtype as BlockName | WordsDType),
    perWord: elements / bytes * (inWords ? 4 : 1),
  }]];
}

/** The contents of tensors of packed parameters in a file, by name. */
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

/** The buffer names of a parameter that may be packed. */
export function partNames(param: string): string[] {
  return [
    ...new Set(
      Object.values(PACKINGS).flatMap(({ names }) => Object.values(names)),
    ),
  ].map((ending) => param + ending);
}

/** The encoding of a `quantization_config`, if kernels read it directly from files. */
export function packedBy(
  config: { readonly [field: string]: unknown },
): keyof typeof FILED | undefined {
  return FILED_DTYPES.find((dtype) =>
    Object.entries(FILED[dtype].file.config).every(([field, value]) =>
      config[field] === value
    )
  );
}
