/**
 * Types of GGUF tensors, one row each, by file number. A block is decoded to codes, scales and offsets of
 * `spec/packed.ts`, by the formulas of ggml's `dequantize_row_*`.
 */

import { widen } from "../../runtime/half.ts";
import type { Parts } from "../encodings/matrix.ts";
import type { PackedElementName } from "../../spec/packed.ts";
import {
  type Encode,
  encodeMxfp4,
  encodeQ4,
  encodeQ4K,
  encodeQ5,
  encodeQ6K,
  encodeQ8,
} from "./encode_blocks.ts";

/** A type whose elements have separate bytes. */
export interface PlainType {
  readonly name: string;
  /** Its name in safetensors files. */
  readonly dtype: "F32" | "F16" | "BF16";
  readonly bytes: number;
}

/** A type in blocks. */
export interface BlockType {
  readonly name: string;
  /** Elements per block, and bytes. */
  readonly elements: number;
  readonly bytes: number;
  readonly element: PackedElementName;
  /** Elements per scale. */
  readonly group: number;
  /** Decodes the block at the start of the bytes. */
  readonly decode: (block: Uint8Array, to: Parts) => void;
  /** Encodes a block. Absent: the type can only be read. */
  readonly encode?: Encode;
  /** The type for rows that are not a multiple of the block length. Absent: there is none. */
  readonly instead?: string;
}

/** The f16 at a byte offset. */
function half(block: Uint8Array, at: number): number {
  return widen("f16", Uint16Array.of(block[at]! | block[at + 1]! << 8))[0]!;
}

/** Nibbles of bytes: low halves first, then high halves. */
function nibbles(bytes: Uint8Array, codes: Uint8Array): void {
  const { length } = bytes;
  for (let i = 0; i < length; i++) {
    codes[i] = bytes[i]! & 15;
    codes[i + length] = bytes[i]! >> 4;
  }
}

/** Blocks of 32: the scale, an offset if `offset` is set, optionally a fifth bit each, then nibbles. */
function legacy(
  { offset, fifth }: { readonly offset: boolean; readonly fifth: boolean },
): BlockType["decode"] {
  return (block, { codes, scales, offsets }) => {
    scales[0] = half(block, 0);
    if (offset) offsets[0] = half(block, 2);
    const start = offset ? 4 : 2;
    nibbles(block.subarray(start + (fifth ? 4 : 0)).subarray(0, 16), codes);
    if (!fifth) return;
    for (let i = 0; i < 32; i++) {
      const bit = (block[start + (i >> 3)]! >> (i & 7)) & 1;
      const code = codes[i]! | bit << 4;
      codes[i] = offset ? code : (code - 16) & 255;
    }
  };
}

/** The six-bit scale and minimum of sub-block `i` of a K block. */
function scaleAndMinimum(
  packed: Uint8Array,
  i: number,
): readonly [scale: number, minimum: number] {
  if (i < 4) return [packed[i]! & 63, packed[i + 4]! & 63];
  return [
    packed[i + 4]! & 15 | packed[i - 4]! >> 6 << 4,
    packed[i + 4]! >> 4 | packed[i]! >> 6 << 4,
  ];
}

/** Q4_K and Q5_K: eight sub-blocks of 32 with six-bit scales and minimums and two factors. */
function kBlock(fifth: boolean): BlockType["decode"] {
  return (block, { codes, scales, offsets }) => {
    const [factor, minimumFactor] = [half(block, 0), half(block, 2)];
    const packed = block.subarray(4, 16);
    for (let i = 0; i < 8; i++) {
      const [scale, minimum] = scaleAndMinimum(packed, i);
      scales[i] = Math.fround(factor * scale);
      offsets[i] = -Math.fround(minimumFactor * minimum);
    }
    const low = fifth ? 48 : 16;
    for (let pair = 0; pair < 4; pair++) {
      nibbles(
        block.subarray(low + 32 * pair, low + 32 * pair + 32),
        codes.subarray(64 * pair, 64 * pair + 64),
      );
    }
    if (!fifth) return;
    for (let i = 0; i < 256; i++) {
      const bit = (block[16 + (i & 31)]! >> (i >> 5)) & 1;
      codes[i] = codes[i]! | bit << 4;
    }
  };
}

/** Q6_K: 16 groups of 16 with eight-bit scales and a factor; four low bits and two high bits are stored separately. */
function q6K(block: Uint8Array, { codes, scales }: Parts): void {
  const factor = half(block, 208);
  for (let i = 0; i < 16; i++) {
    scales[i] = Math.fround(factor * ((block[192 + i]! ^ 128) - 128));
  }
  for (let i = 0; i < 256; i++) {
    const [part, at] = [i >> 7, i & 127];
    const lane = at & 31;
    const quarter = at >> 5;
    const byte = block[64 * part + (quarter & 1) * 32 + lane]!;
    const low = quarter < 2 ? byte & 15 : byte >> 4;
    const high = (block[128 + 32 * part + lane]! >> (2 * quarter)) & 3;
    codes[i] = ((low | high << 4) - 32) & 255;
  }
}

/** IQ4_XS: eight sub-blocks of 32 table entries with six-bit scales and a factor. */
function iq4Xs(block: Uint8Array, { codes, scales }: Parts): void {
  const factor = half(block, 0);
  const high = block[2]! | block[3]! << 8;
  for (let i = 0; i < 8; i++) {
    const low = (block[4 + (i >> 1)]! >> (4 * (i & 1))) & 15;
    const scale = low | ((high >> (2 * i)) & 3) << 4;
    scales[i] = Math.fround(factor * (scale - 32));
    nibbles(
      block.subarray(8 + 16 * i, 24 + 16 * i),
      codes.subarray(32 * i, 32 * i + 32),
    );
  }
}

/** The supported types, by number. */
export const GGUF_TYPES: {
  readonly [type: number]: PlainType | BlockType;
} = {
  0: { name: "F32", dtype: "F32", bytes: 4 },
  1: { name: "F16", dtype: "F16", bytes: 2 },
  30: { name: "BF16", dtype: "BF16", bytes: 2 },
  2: {
    name: "Q4_0",
    elements: 32,
    bytes: 18,
    element: "int4",
    group: 32,
    decode: legacy({ offset: false, fifth: false }),
    encode: encodeQ4,
    instead: "BF16",
  },
  3: {
    name: "Q4_1",
    elements: 32,
    bytes: 20,
    element: "uint4",
    group: 32,
    decode: legacy({ offset: true, fifth: false }),
  },
  6: {
    name: "Q5_0",
    elements: 32,
    bytes: 22,
    element: "int8",
    group: 32,
    decode: legacy({ offset: false, fifth: true }),
    encode: encodeQ5,
    instead: "BF16",
  },
  7: {
    name: "Q5_1",
    elements: 32,
    bytes: 24,
    element: "uint8",
    group: 32,
    decode: legacy({ offset: true, fifth: true }),
  },
  8: {
    name: "Q8_0",
    elements: 32,
    bytes: 34,
    element: "int8",
    group: 32,
    decode: (block, { codes, scales }) => {
      scales[0] = half(block, 0);
      codes.set(block.subarray(2, 34));
    },
    encode: encodeQ8,
    instead: "BF16",
  },
  12: {
    name: "Q4_K",
    elements: 256,
    bytes: 144,
    element: "uint4",
    group: 32,
    decode: kBlock(false),
    encode: encodeQ4K,
    instead: "Q5_0",
  },
  13: {
    name: "Q5_K",
    elements: 256,
    bytes: 176,
    element: "uint8",
    group: 32,
    decode: kBlock(true),
  },
  14: {
    name: "Q6_K",
    elements: 256,
    bytes: 210,
    element: "int8",
    group: 16,
    decode: q6K,
    encode: encodeQ6K,
    instead: "Q8_0",
  },
  20: {
    name: "IQ4_NL",
    elements: 32,
    bytes: 18,
    element: "iq4",
    group: 32,
    decode: (block, { codes, scales }) => {
      scales[0] = half(block, 0);
      nibbles(block.subarray(2, 18), codes);
    },
  },
  23: {
    name: "IQ4_XS",
    elements: 256,
    bytes: 136,
    element: "iq4",
    group: 32,
    decode: iq4Xs,
  },
  39: {
    name: "MXFP4",
    elements: 32,
    bytes: 17,
    element: "fp4",
    group: 32,
    decode: (block, { codes, scales }) => {
      scales[0] = 2 ** (block[0]! - 127);
      nibbles(block.subarray(1, 17), codes);
    },
    encode: encodeMxfp4,
    instead: "BF16",
  },
};

/** Whether a type is in blocks. */
export function isBlockType(type: PlainType | BlockType): type is BlockType {
  return "decode" in type;
}
