/** Element types: what tensors compute in, and what files and buffers store. */

import type { PackedDType } from "./packed.ts";

/** What a tensor computes in. `f16` values are f32 arithmetic, rounded to f16 at every node. */
export type DType = "f32" | "f16" | "i32" | "u32";

/** What a buffer holds: a compute type in four bytes, or 16-bit floats or bytes of a checkpoint, several to a word. */
export type StoredDType = "f32" | "f16" | "bf16" | "i32" | "u32" | "u8";

/** What files store a parameter as. Bytes are only scales of a packed one. */
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

/** The dtype of the buffer that holds a tensor computed in `dtype` (f16 values live in f32 words). */
export function storedDType(dtype: DType): StoredDType {
  return dtype === "f16" ? "f32" : dtype;
}

/** 16-bit floats. */
export type HalfDType = "f16" | "bf16";

/** Whether elements are 16-bit floats, two to a word. */
export function isHalf(dtype: FileDType): dtype is HalfDType {
  return dtype === "f16" || dtype === "bf16";
}

/** The bits of the one NaN among 16-bit floats that rounding gives. */
export const QUIET_NAN = { f16: 0x7e00, bf16: 0x7fc0 } as const;
