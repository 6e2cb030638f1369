/** The header of a written GGUF file: keys with values, and tensor locations. The padded bytes of tensors follow. */

import { concatenated } from "../../spec/concatenated.ts";

/** A value of a key. */
export type GgufValue =
  | { readonly u32: number }
  | { readonly f32: number }
  | { readonly text: string }
  | { readonly texts: readonly string[] }
  | { readonly bool: boolean }
  | { readonly bools: readonly boolean[] }
  | { readonly f32s: readonly number[] }
  | { readonly i32s: readonly number[] };

/** Keys with their values. */
export type GgufValues = { readonly [key: string]: GgufValue };

/** A tensor of a file, its outermost axis first. */
export interface WrittenTensor {
  readonly name: string;
  readonly shape: readonly number[];
  /** The number of its type. */
  readonly type: number;
  /** Its bytes, without padding. */
  readonly bytes: number;
}

const VERSION = 3;
const ALIGNMENT = 32;

/** Codes of types of values. */
const CODE = { u32: 4, i32: 5, f32: 6, bool: 7, text: 8, array: 9 };

/** Returns everything before the bytes of tensors, which follow in the same order. */
export function ggufHead(
  keys: GgufValues,
  tensors: readonly WrittenTensor[],
): Uint8Array {
  // Vocabularies are too long for the arguments of a call.
  const head: Uint8Array[] = [
    new TextEncoder().encode("GGUF"),
    u32(VERSION),
    u64(tensors.length),
    u64(Object.keys(keys).length),
    ...Object.entries(keys).flatMap((
      [key, value],
    ) => [...text(key), ...encode(value)]),
  ];
  let offset = 0;
  for (const { name, shape, type, bytes } of tensors) {
    // The innermost axis comes first.
    head.push(...text(name), u32(shape.length), ...shape.map(u64).reverse());
    head.push(u32(type), u64(offset));
    offset += bytes + paddingAfter(bytes).length;
  }
  const length = head.reduce((sum, part) => sum + part.length, 0);
  return concatenated([...head, paddingAfter(length)]);
}

/** Returns zeros after a number of bytes, up to the start of the next tensor. */
export function paddingAfter(length: number): Uint8Array {
  return new Uint8Array((ALIGNMENT - length % ALIGNMENT) % ALIGNMENT);
}

function encode(value: GgufValue): Uint8Array[] {
  if ("u32" in value) return [u32(CODE.u32), u32(value.u32)];
  if ("f32" in value) return [u32(CODE.f32), f32(value.f32)];
  if ("bool" in value) return [u32(CODE.bool), Uint8Array.of(+value.bool)];
  if ("text" in value) return [u32(CODE.text), ...text(value.text)];
  if ("texts" in value) {
    return [...array(CODE.text, value.texts), ...value.texts.flatMap(text)];
  }
  if ("bools" in value) {
    return [
      ...array(CODE.bool, value.bools),
      Uint8Array.from(value.bools, Number),
    ];
  }
  if ("f32s" in value) {
    return [...array(CODE.f32, value.f32s), ...value.f32s.map(f32)];
  }
  return [...array(CODE.i32, value.i32s), ...value.i32s.map(u32)];
}

function array(code: number, { length }: readonly unknown[]): Uint8Array[] {
  return [u32(CODE.array), u32(code), u64(length)];
}

function text(value: string): Uint8Array[] {
  const bytes = new TextEncoder().encode(value);
  return [u64(bytes.length), bytes];
}

function u32(value: number): Uint8Array {
  return new Uint8Array(Uint32Array.of(value).buffer);
}

function f32(value: number): Uint8Array {
  return new Uint8Array(Float32Array.of(value).buffer);
}

function u64(value: number): Uint8Array {
  return new Uint8Array(BigUint64Array.of(BigInt(value)).buffer);
}
