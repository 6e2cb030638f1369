/** Random blocks of GGUF files, as stored and decoded. */

import {
  type Block,
  blockDecoder,
  type BlockName,
  BLOCKS,
} from "../../spec/weights/blocks.ts";
import {
  PACKED_ELEMENTS,
  type PackedElement,
  type Packing,
  PACKINGS,
  type WordsDType,
} from "../../spec/weights/packed.ts";
import { rearrangement } from "../../spec/weights/word_blocks.ts";
import { inWords } from "./halves.ts";

/** Encodings of blocks: those of files, and rearranged ones. */
export type BlocksDType = BlockName | WordsDType;

/** Columns of blocks. */
export interface RandomBlocks {
  /** Their bytes in a file. */
  readonly blocks: Uint8Array;
  readonly codes: Uint8Array;
  /** One per group. */
  readonly scales: Float32Array;
  readonly offsets?: Float32Array;
}

/** Returns a pseudorandom generator of u32 (xorshift). */
export function randomsFrom(seed: number): () => number {
  let state = seed | 1;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return state >>> 0;
  };
}

/** The blocks of files in an encoding. */
export function fileOf(stored: BlocksDType): BlockName {
  return stored.replace("_words", "") as BlockName;
}

/** Returns random blocks with finite factors of all magnitudes. */
export function randomBlocks(
  stored: BlocksDType,
  { columns, k, next }: {
    readonly columns: number;
    readonly k: number;
    readonly next: () => number;
  },
): RandomBlocks {
  const file = fileOf(stored);
  const { elements, bytes, group, scales, offsets }: Block = BLOCKS[file];
  const count = columns * k / elements;
  const blocks = Uint8Array.from({ length: count * bytes }, () => next());
  const decode = blockDecoder(file);
  const groups = elements / group;
  const decoded = {
    codes: new Uint8Array(columns * k),
    scales: new Float32Array(count * groups),
    offsets: new Float32Array(count * groups),
  };
  for (let i = 0; i < count; i++) {
    const block = blocks.subarray(i * bytes, (i + 1) * bytes);
    for (const { at, factor } of offsets ? [scales, offsets] : [scales]) {
      if (factor === "e8m0") block[at] = next() % 165;
      else if ((block[at + 1]! & 0x7c) === 0x7c) block[at + 1]! &= 0x83;
    }
    decode(block, {
      codes: decoded.codes.subarray(i * elements, (i + 1) * elements),
      scales: decoded.scales.subarray(i * groups, (i + 1) * groups),
      offsets: decoded.offsets.subarray(i * groups, (i + 1) * groups),
    });
  }
  const { codes, scales: numbers } = decoded;
  return {
    blocks,
    codes,
    scales: numbers,
    ...offsets ? { offsets: decoded.offsets } : {},
  };
}

/** Rearranges blocks of a file: words [column, n]. */
export function wordsOfBlocks(
  stored: WordsDType,
  blocks: Uint8Array,
): Uint32Array {
  return inWords(rearrangement(BLOCKS[fileOf(stored)])(blocks)!);
}

/** Matrices [k, columns] of experts in blocks, and their values. */
interface BlockMatrices {
  /** Bytes [expert, column, k], or rearranged words [expert, k, column]. */
  readonly words: Uint32Array;
  /** Values [expert, k, column]. */
  readonly values: Float32Array;
}

/** Returns random blocks of `experts` matrices. `part`: the words are those of rank `rank` of `of`, which shard k. */
export function randomMatrices(
  stored: BlocksDType,
  { columns, k, experts, seed, part: { of, rank } = { of: 1, rank: 0 } }: {
    readonly columns: number;
    readonly k: number;
    readonly experts: number;
    readonly seed: number;
    readonly part?: { readonly of: number; readonly rank: number } | undefined;
  },
): BlockMatrices {
  const next = randomsFrom(seed + 1);
  const packing: Packing = PACKINGS[stored];
  const { value }: PackedElement = PACKED_ELEMENTS[packing.element];
  const values = new Float32Array(experts * k * columns);
  const words: Uint32Array[] = [];
  const bytes: Uint8Array[] = [];
  for (let expert = 0; expert < experts; expert++) {
    const found = randomBlocks(stored, { columns, k, next });
    const { blocks, codes, scales, offsets } = found;
    for (const [i, code] of codes.entries()) {
      const group = Math.floor(i / packing.perScale!);
      const element = Math.fround(value(code) * scales[group]!);
      const [column, at] = [Math.floor(i / k), i % k];
      values[(expert * k + at) * columns + column] = element +
        (offsets?.[group] ?? 0);
    }
    const each = blocks.length / columns / of;
    const local = blocks.filter((_, i) => Math.floor(i / each) % of === rank);
    if (packing.inWords) {
      const rows = wordsOfBlocks(stored as WordsDType, local);
      words.push(transposed(rows, columns));
    } else bytes.push(local);
  }
  return {
    words: packing.inWords
      ? Uint32Array.from(words.flatMap((of) => [...of]))
      : inWords(bytes.flatMap((of) => [...of])),
    values,
  };
}

/** Transposes values [column, n] to [n, column]. */
export function transposed<T extends Uint32Array | Float32Array>(
  values: T,
  columns: number,
): T {
  const each = values.length / columns;
  return values.map((_, i) =>
    values[(i % columns) * each + Math.floor(i / columns)]!
  ) as T;
}
