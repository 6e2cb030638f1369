/** Elements of a buffer on the host: four bytes each. */

import { isHalf, STORED_BYTES, type StoredDType } from "../../spec/dtype.ts";
import { widen } from "../half.ts";
import { words, wordsOf } from "../host_tensor.ts";

/** Bytes of this many elements on a device, rounded up to words. */
export function spanBytes(dtype: StoredDType, elements: number): number {
  return Math.ceil(elements * STORED_BYTES[dtype] / 4) * 4;
}

/** The elements in bytes from a device, one per word. 16-bit floats are widened, possibly with one padding element. */
export function storedWords(
  dtype: StoredDType,
  bytes: Uint8Array,
): Uint32Array {
  const found = wordsOf(bytes);
  if (!isHalf(dtype)) return found;
  const { buffer, byteOffset, length } = found;
  const data = widen(dtype, new Uint16Array(buffer, byteOffset, 2 * length));
  return words({ dtype: "f32", shape: [data.length], data });
}
