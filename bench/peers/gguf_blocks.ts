/** Random blocks of GGUF types, and their values. */

import { createHash } from "node:crypto";
import {
  type BlockType,
  GGUF_TYPES,
  isBlockType,
} from "../../engine/gguf/blocks.ts";
import {
  PACKED_ELEMENTS,
  type PackedElement,
} from "../../spec/weights/packed.ts";

/** The block types with their numbers. */
export const BLOCK_TYPES = Object.entries(GGUF_TYPES).flatMap((
  [number, type],
) => isBlockType(type) ? [{ ...type, number: Number(number) }] : []);

/** Returns bytes from a seed. */
export function bytesFrom(seed: number, length: number): Uint8Array {
  const all: Uint8Array[] = [];
  for (let i = 0; 32 * i < length; i++) {
    all.push(createHash("sha256").update(`${seed} ${i}`).digest());
  }
  return Uint8Array.from(Buffer.concat(all).subarray(0, length));
}

/** Bytes of the f16 factors by type, and of MXFP4's exponents. */
const FACTORS: { readonly [type: string]: readonly number[] } = {
  Q4_1: [0, 2],
  Q5_1: [0, 2],
  Q4_K: [0, 2],
  Q5_K: [0, 2],
  Q6_K: [208],
};

/** Returns random blocks with small factors. */
export function blocksOf(
  type: BlockType,
  count: number,
  seed: number,
): Uint8Array {
  const blocks = bytesFrom(seed, count * type.bytes);
  for (let at = 0; at < blocks.length; at += type.bytes) {
    if (type.name === "MXFP4") {
      blocks[at] = 116 + blocks[at]! % 6;
      continue;
    }
    // f16 numbers of about 0.001 to 0.004.
    for (const factor of FACTORS[type.name] ?? [0]) {
      blocks[at + factor + 1] = 0x14 + blocks[at + factor + 1]! % 8;
    }
  }
  return blocks;
}

/** Returns the values of blocks. */
export function valuesOf(type: BlockType, blocks: Uint8Array): Float32Array {
  const { value, offset }: PackedElement = PACKED_ELEMENTS[type.element];
  const groups = type.elements / type.group;
  const count = blocks.length / type.bytes;
  const values = new Float32Array(count * type.elements);
  for (let i = 0; i < count; i++) {
    const to = {
      codes: new Uint8Array(type.elements),
      scales: new Float32Array(groups),
      offsets: new Float32Array(groups),
    };
    type.decode(blocks.subarray(i * type.bytes, (i + 1) * type.bytes), to);
    to.codes.forEach((code, n) => {
      const group = Math.floor(n / type.group);
      const scaled = Math.fround(value(code) * to.scales[group]!);
      values[i * type.elements + n] = offset
        ? scaled + to.offsets[group]!
        : scaled;
    });
  }
  return values;
}

/** Returns a digest of numbers. ggml's table of MXFP4 has no negative zero. */
export function digestOf(values: Float32Array): string {
  const bytes = Buffer.from(values.map((x) => x === 0 ? 0 : x).buffer);
  return createHash("sha256").update(bytes).digest("hex");
}
