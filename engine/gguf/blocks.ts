/** Types of GGUF tensors, one row each, by file number. */

import {
  type Block,
  blockDecoder,
  type BlockName,
  type BlockParts,
  BLOCKS,
} from "../../spec/weights/blocks.ts";
import { titleOf } from "../../spec/weights/packed.ts";
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
  readonly dtype: "F32" | "F16" | "BF16" | "I32";
  readonly bytes: number;
}

/** A type in blocks. */
export interface BlockType extends Block {
  readonly name: string;
  readonly block: BlockName;
  /** Decodes the block at the start of the bytes. */
  readonly decode: (block: Uint8Array, to: BlockParts) => void;
  /** Encodes a block. Absent: the type can only be read. */
  readonly encode?: Encode;
  /** The type for rows that are not a multiple of the block length. Absent: there is none. */
  readonly instead?: string;
}

function blocks(
  block: BlockName,
  written: Pick<BlockType, "encode" | "instead"> = {},
): BlockType {
  const name = titleOf(block);
  const decode = blockDecoder(block);
  return { ...BLOCKS[block], name, block, decode, ...written };
}

/** The supported types, by number. */
export const GGUF_TYPES: {
  readonly [type: number]: PlainType | BlockType;
} = {
  0: { name: "F32", dtype: "F32", bytes: 4 },
  1: { name: "F16", dtype: "F16", bytes: 2 },
  26: { name: "I32", dtype: "I32", bytes: 4 },
  30: { name: "BF16", dtype: "BF16", bytes: 2 },
  2: blocks("q4_0", { encode: encodeQ4, instead: "BF16" }),
  3: blocks("q4_1"),
  6: blocks("q5_0", { encode: encodeQ5, instead: "BF16" }),
  7: blocks("q5_1"),
  8: blocks("q8_0", { encode: encodeQ8, instead: "BF16" }),
  12: blocks("q4_k", { encode: encodeQ4K, instead: "Q5_0" }),
  13: blocks("q5_k"),
  14: blocks("q6_k", { encode: encodeQ6K, instead: "Q8_0" }),
  20: blocks("iq4_nl"),
  23: blocks("iq4_xs"),
  39: blocks("mxfp4_block", { encode: encodeMxfp4, instead: "BF16" }),
};

/** Whether a type is in blocks. */
export function isBlockType(type: PlainType | BlockType): type is BlockType {
  return "decode" in type;
}
