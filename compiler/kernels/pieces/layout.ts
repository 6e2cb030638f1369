/** The layouts of packed weights: elements in words, with scales in another buffer, or blocks with their scales. */

import type { Block } from "../../../spec/weights/blocks.ts";
import {
  type PackedDType,
  type Packing,
  PACKINGS,
} from "../../../spec/weights/packed.ts";

/** A packing of elements in blocks. */
export interface BlockPacking extends Packing {
  readonly block: Block;
}

/** Returns the entry of the layout of a weight. */
export function byLayout<T>(
  stored: PackedDType,
  entries: {
    words(packing: Packing): T;
    blocks(packing: BlockPacking): T;
  },
): T {
  const packing: Packing = PACKINGS[stored];
  return hasBlocks(packing) ? entries.blocks(packing) : entries.words(packing);
}

function hasBlocks(packing: Packing): packing is BlockPacking {
  return packing.block !== undefined;
}
