/** Reads parts of tensors as numbers. */

import { readTensor, type TensorEntry } from "../../runtime/mod.ts";
import { readExactly } from "../../runtime/weights/file_source.ts";
import { isAllowedScale } from "../../spec/weights/activations.ts";
import type { HalfDType } from "../../spec/dtype.ts";
import { DataError } from "../../spec/errors.ts";
import { SCALES } from "../../spec/weights/packed.ts";
import { shown } from "../../spec/shown.ts";

/** Rows of the first axis as a separate tensor. */
export function rowsOf(
  entry: TensorEntry,
  begin: number,
  end: number,
): TensorEntry {
  const [rows = 1, ...rest] = entry.shape;
  const each = entry.bytes / rows;
  return {
    ...entry,
    shape: [end - begin, ...rest],
    offset: entry.offset + begin * each,
    bytes: (end - begin) * each,
  };
}

/** The bytes of a tensor. */
export async function bytesIn(entry: TensorEntry): Promise<Uint8Array> {
  const { source, offset, bytes } = entry;
  return await readExactly(source, offset, bytes);
}

/** The u32 words of a tensor. */
export async function wordsIn(entry: TensorEntry): Promise<Uint32Array> {
  const bytes = (await bytesIn(entry)).slice();
  return new Uint32Array(bytes.buffer, 0, bytes.length / 4);
}

/** Values of 8-bit scales, by dtype: E4M3, and the exponents of E8M0. */
const BYTES: { readonly [dtype: string]: (code: number) => number } = {
  F8_E4M3: (code) => (code & 127) === 127 ? NaN : SCALES.e4m3.value(code),
  U8: (code) => code === 255 ? NaN : SCALES.e8m0.value(code),
};

/**
 * Scales of a tensor as f32: F32, F16, BF16, F8_E4M3, or E8M0 as U8. Throws DataError for one that is not finite or
 * above 2^40.
 */
export async function floatsIn(entry: TensorEntry): Promise<Float32Array> {
  const value = BYTES[entry.dtype];
  const values = value
    ? new Float32Array(await bytesIn(entry)).map(value)
    : (await readTensor(entry)).data;
  if (!(values instanceof Float32Array)) {
    throw new DataError(
      `Cannot read tensor '${
        shown(entry.name)
      }' of '${entry.source.name}': its dtype is ${entry.dtype}, and scales are F32, F16, BF16, F8_E4M3 or U8. Get the file again`,
    );
  }
  const bad = values.findIndex((x) => !isAllowedScale(x));
  if (bad < 0) return values;
  throw new DataError(
    `Cannot read tensor '${
      shown(entry.name)
    }' of '${entry.source.name}': element ${bad} is not a finite number of at most 2^40. Get the file again`,
  );
}

/** The dtype of the scales of a tensor, if they have 16 bits. */
export function halfScales({ dtype }: TensorEntry): HalfDType | undefined {
  return dtype === "F16" ? "f16" : dtype === "BF16" ? "bf16" : undefined;
}

/** Codes of `bits` bits from words, in bit order. */
export function codesOf(words: Uint32Array, bits: 4 | 8): Uint8Array {
  const each = 32 / bits;
  const mask = (1 << bits) - 1;
  const codes = new Uint8Array(words.length * each);
  words.forEach((word, i) => {
    for (let n = 0; n < each; n++) {
      codes[i * each + n] = (word >>> (n * bits)) & mask;
    }
  });
  return codes;
}
