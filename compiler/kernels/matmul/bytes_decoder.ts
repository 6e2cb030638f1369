/** The interface between the loops of a matrix multiplication of bytes and the layouts of its weights. */

import type { Block } from "../../../spec/weights/blocks.ts";
import type { Hole, KernelText } from "../kernel.ts";

/** The scales or the offsets of a weight. */
export type FactorPart = "scales" | "offsets";

/** A stored word of a sum. */
export interface WordOfSum {
  /** Its column. */
  readonly c: number;
  readonly sum: KernelText;
  /** Its number in the sum. */
  readonly word: KernelText;
  /** Whether `locate` has declared the run of the sum. Default: no. */
  readonly inRun?: boolean;
}

/** The scale or the offset of a sum. */
export interface FactorOfSum {
  /** Its column. */
  readonly c: number;
  readonly n: KernelText;
  /** 1 for the sum after the one of `locate`. Default: 0. */
  readonly next?: 0 | 1;
  readonly part: FactorPart;
  /** The start of the block, if it is stored. */
  readonly header?: Header | undefined;
}

/** Stored first words of blocks, in workgroup memory. */
export interface Header {
  readonly array: string;
  index(word: Hole): KernelText;
}

/** A block of a weight. */
export interface BlockOperand {
  readonly layout: Block;
  /** Sums of a block. */
  readonly sums: number;
  /** Bytes of the units in which it is stored: bytes or words. */
  readonly unit: 1 | 4;
}

/** Weight i of a matrix multiplication of bytes: how its sums are loaded and decoded. Each layout has one. */
export interface BytesDecoder {
  /** The offset of bytes from integers. */
  readonly above: number;
  /** Sums whose codes share words. */
  readonly together: 1 | 2;
  /** Stored words of these sums, and words of bytes in each. */
  readonly words: number;
  readonly parts: number;
  /** Whether sums have offsets. */
  readonly hasOffsets: boolean;
  /** Scales that share a word. */
  readonly scalesPerWord: number;
  /** Absent: scales are not in blocks. */
  readonly block?: BlockOperand;
  /** Loads a stored word, plane by plane. */
  load(at: WordOfSum): readonly KernelText[];
  /** The words of bytes in a stored word, part by part. `stored`: its planes. */
  bytes(
    stored: readonly KernelText[],
    word: KernelText,
  ): readonly KernelText[];
  /** The scale or the offset of a sum, as f32. */
  factor(at: FactorOfSum): KernelText;
  /** The two scales of a word, in memory order. Absent: a word has one, or four. */
  twoScales?(word: KernelText): readonly [KernelText, KernelText];
  /** The scale that a byte stores. Absent: scales are not single bytes. */
  scaleOfByte?(byte: KernelText): KernelText;
  /** Whether scales or offsets may be smaller than `Q8_MIN`, and not 0. */
  mayBeTiny(part: FactorPart): boolean;
  /**
   * Declares the block of a sum in each column. `run`: the sum is the first of its run. Absent: there are no blocks.
   */
  locate?(at: {
    readonly columns: readonly number[];
    readonly sum: KernelText;
    readonly run: boolean;
  }): KernelText;
  /** Stores the first words of a sum's block in a column. Absent: they have no scales that lanes load together. */
  storeHeader?(c: number, header: Header): KernelText;
  /** Sums whose loads have indices linear in their number, of `inPart` in a part. Absent: none. */
  runOf?(inPart: number): number;
}
