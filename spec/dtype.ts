/** Element types: compute dtypes of tensors, and storage dtypes of files and buffers. */

import type { PackedDType } from "./weights/packed.ts";

/** Compute dtype of a tensor. `f16` values are computed in f32 and rounded to f16 at every node. */
export type DType = "f32" | "f16" | "i32" | "u32";

/** All compute dtypes. */
export const DTYPES: readonly DType[] = ["f32", "f16", "i32", "u32"];

/**
 * Storage dtype of a buffer: a compute dtype in four bytes, or 16-bit floats or bytes of a checkpoint, several per
 * word.
 */
export type StoredDType = "f32" | "f16" | "bf16" | "i32" | "u32" | "u8";

/**
 * Storage dtype of a parameter in files. Bytes are only scales of a packed parameter.
 *
 * @computed
 */
export type FileDType = StoredDType | PackedDType;

/** Bytes per stored element. */
export const STORED_BYTES: { readonly [D in StoredDType]: number } = {
  f32: 4,
  f16: 2,
  bf16: 2,
  i32: 4,
  u32: 4,
  u8: 1,
};

/** The storage dtype of a tensor with a compute dtype (f16 values are stored in f32 words). */
export function storedDType(dtype: DType): StoredDType {
  return dtype === "f16" ? "f32" : dtype;
}

/** 16-bit floats. */
export type HalfDType = "f16" | "bf16";

/** Whether elements are 16-bit floats, two per word. */
export function isHalf(dtype: FileDType): dtype is HalfDType {
  return dtype === "f16" || dtype === "bf16";
}

/** The bits of the NaN that rounding to 16-bit floats returns. */
export const QUIET_NAN = { f16: 0x7e00, bf16: 0x7fc0 } as const;
