/**
 * Weights whose elements share words along the contracted axis, and have scales: one row for each such encoding. How a
 * kernel decodes them is in `compiler/kernels/pieces/decode.ts`.
 */

import type { FileDType } from "./dtype.ts";

/** How a matrix is packed. In files, the contracted axis is the last. */
export interface Packing {
  /** What people call it. */
  readonly title: string;
  /** Elements in a word of 32 bits: a power of two. */
  readonly perWord: number;
  /** Neighbouring elements of the contracted axis that share a scale: a power of two. Absent: all of them. */
  readonly perScale?: number;
  /** What kernels read a scale as; of `u32`, files have a byte. */
  readonly scale: "u32" | "f32";
  /** The dtype of elements in safetensors files, and what the names of a parameter's two tensors end in. */
  readonly file: {
    readonly dtype: string;
    readonly elements: string;
    readonly scales: string;
  };
  /** What `quantization_config` says; of compressed-tensors, with the fields of its first group's `weights`. */
  readonly config: { readonly [field: string]: unknown };
  /** Published checkpoints store only experts so. */
  readonly expertsOnly?: true;
}

/** The encodings. */
export const PACKINGS = {
  // Four-bit floats (E2M1), and a power of two (E8M0) for each 32.
  mxfp4: {
    title: "MXFP4",
    perWord: 8,
    perScale: 32,
    scale: "u32",
    file: { dtype: "U8", elements: "_blocks", scales: "_scales" },
    config: { quant_method: "mxfp4" },
    expertsOnly: true,
  },
  // compressed-tensors, `int-quantized`: a factor for each output channel.
  int8: {
    title: "int8",
    perWord: 4,
    scale: "f32",
    file: { dtype: "I8", elements: "", scales: "_scale" },
    config: {
      quant_method: "compressed-tensors",
      format: "int-quantized",
      type: "int",
      num_bits: 8,
      strategy: "channel",
    },
  },
} as const satisfies { readonly [name: string]: Packing };

/** A name in the table. */
export type PackedDType = keyof typeof PACKINGS;

/** The names in the table. */
export const PACKED_DTYPES = Object.keys(PACKINGS) as readonly PackedDType[];

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
  readonly dtype: PackedDType;
  readonly param: string;
  readonly part: "elements" | "scales";
}

/** What each of these tensors holds of a parameter that is packed, by name. */
export function packedParts(
  names: Iterable<string>,
  mayHold: (packing: Packing, name: string) => boolean,
): ReadonlyMap<string, PackedPart> {
  const all = new Set(names);
  const parts = new Map<string, PackedPart>();
  for (const dtype of PACKED_DTYPES) {
    const packing: Packing = PACKINGS[dtype];
    const { elements, scales } = packing.file;
    for (const name of all) {
      if (!name.endsWith(elements) || !mayHold(packing, name)) continue;
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
  return PACKED_DTYPES.flatMap((dtype) => {
    const { elements, scales } = PACKINGS[dtype].file;
    return [param + elements, param + scales];
  });
}

/** The encoding that a `quantization_config` describes, if it is one of these. */
export function packedBy(
  config: { readonly [field: string]: unknown },
): PackedDType | undefined {
  return PACKED_DTYPES.find((dtype) =>
    Object.entries(PACKINGS[dtype].config).every(([field, value]) =>
      config[field] === value
    )
  );
}
