/** The interface between the loops of a matrix multiplication and the encodings of its weights. */

import type { Expr, KernelText, Stmt } from "../kernel.ts";
import type { ScaledDecoder, WordDecoder } from "../pieces/decode.ts";
import type { WeightsOptions } from "./options.ts";

/** Statements of a kernel. */
export type Parts = readonly (Stmt | KernelText)[];

/** A word that a lane loads for each of its columns. */
export interface WordAt {
  /** Prefix of its variables <name><i>[c]. */
  readonly name: string;
  /** The index of its first element along k. */
  readonly k: Expr;
  /** `k` in words. */
  readonly word: Expr;
}

/** Loads of some columns. */
export interface Loaded {
  /** Statements before those of the columns. */
  readonly before: Parts;
  /** Statements of a column. */
  of(column: number): Parts;
}

/** An element of a loaded word. */
export interface ElementAt {
  readonly column: number;
  /** Its number among the elements along k. */
  readonly n: number;
}

/** Elements of a word as signed bytes, looked up in a table, four at a time. */
export interface ByteTable {
  /** The words of bytes. */
  of(word: Expr): readonly Expr[];
  /** The word and the byte of the n-th element. */
  at(n: number): readonly [word: number, byte: number];
}

/** The scales of a weight, and its offsets if it has them. */
export interface WeightScales {
  /** Elements along k that share one. */
  readonly elements: number;
  readonly hasOffsets: boolean;
  /**
   * Declares factor<g>_<i>[c] and offset<g>_<i>[c] of the first `count` groups of a block of a sum, and boundary_<i>,
   * the index with the second one. `start`: index of the first element of the block.
   */
  ofBlock(
    count: 1 | 2,
    at: { readonly columns: readonly number[]; readonly start: KernelText },
  ): Parts;
  /** Declares factor<g>_<i>[column] and offset<g>_<i>[column] of the groups of iteration `k`. */
  ofIteration(column: number): Parts;
}

/** Weight i of a matrix multiplication: how its elements are loaded and decoded. Each encoding has one. */
export interface WeightDecoder {
  /** Elements in a word. */
  readonly perWord: number;
  /** Elements of a column in a word: all of its elements, or 1 if they belong to adjacent columns. */
  readonly alongK: number;
  /** Words of a row as it is stored. */
  readonly rowWords: number;
  /** Scales of a row as it is stored, if they have a binding of their own. */
  readonly rowScales?: number | undefined;
  /** Prefix of the variables of words: `b` if a word is an element. */
  readonly wordName: string;
  /** Loads words of some columns. */
  load(words: readonly WordAt[], columns: readonly number[]): Loaded;
  /** An element of the word <name><i>[column], without its scale. */
  element(name: string, at: ElementAt): Expr;
  /** The elements of index `k`, one for each column, if an iteration has no other. */
  single(): {
    readonly loaded: Parts;
    element(column: number): Expr;
  };
  /** Declares the locations of the words of a run from index `start` on. */
  beforeRun?(start: KernelText, columns: readonly number[]): Parts;
  /** Decodes all elements of a word along k at once. Absent: elements have no scales. */
  readonly word?: WordDecoder | ScaledDecoder;
  /** Absent: elements are not looked up. */
  readonly table?: ByteTable | undefined;
  readonly scales?: WeightScales;
  /** Elements in f16: exact, or not larger than its largest number. Absent: they may be larger. */
  readonly f16?: "exact" | "limited" | undefined;
}

/** The counter of a run. */
export const RUN_TURN = "run_turn";

/** A matrix multiplication with what the loads of its weights have in common. */
export interface LoadedMatmul extends WeightsOptions {
  /** Words per load. */
  readonly width: number;
  /** Consecutive columns of a lane whose words are loaded together. */
  readonly unit: number;
  /** Indices of k in an iteration. */
  readonly termCount: number;
  /**
   * Indices of a run: of k in a loop of their own, whose words follow each other. Its iterations are counted by
   * `RUN_TURN`. Undefined: there are no runs.
   */
  readonly runLength?: number | undefined;
}

/** A matrix multiplication with the decoders of its weights. */
export interface DecodedMatmul extends LoadedMatmul {
  readonly decoders: readonly WeightDecoder[];
}
