/** Tensors in host memory, as callers pass and receive them. */

/** A global row-major tensor. */
export interface HostTensor {
  readonly dtype: "f32" | "i32" | "u32";
  readonly shape: readonly number[];
  readonly data: Float32Array | Int32Array | Uint32Array;
}

/** The arrays of tensors by dtype. */
export const ARRAYS = { f32: Float32Array, i32: Int32Array, u32: Uint32Array };

/** The number of elements of a shape. */
export function elementCount(shape: readonly number[]): number {
  return shape.reduce((product, size) => product * size, 1);
}

/** A tensor of zeros. */
export function zeros(
  dtype: HostTensor["dtype"],
  shape: readonly number[],
): HostTensor {
  return { dtype, shape, data: new ARRAYS[dtype](elementCount(shape)) };
}

/** A tensor over bytes; copies only if they are not aligned. */
export function tensorOf(
  bytes: Uint8Array,
  { dtype, shape }: Pick<HostTensor, "dtype" | "shape">,
): HostTensor {
  const { buffer, byteOffset, length } = wordsOf(bytes);
  const data = new ARRAYS[dtype](buffer as ArrayBuffer, byteOffset, length);
  return { dtype, shape, data };
}

/** The words of a tensor of any dtype, without a copy. */
export function words(tensor: HostTensor): Uint32Array {
  const { buffer, byteOffset, length } = tensor.data;
  return new Uint32Array(buffer, byteOffset, length);
}

/** The bytes of an array, without a copy. */
export function bytesOf(data: ArrayBufferView): Uint8Array {
  return new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
}

/** The u32 words of bytes from a device; copies only if they are not aligned. */
export function wordsOf(bytes: Uint8Array): Uint32Array {
  const aligned = bytes.byteOffset % 4 === 0 ? bytes : bytes.slice();
  return new Uint32Array(
    aligned.buffer,
    aligned.byteOffset,
    aligned.byteLength >> 2,
  );
}
