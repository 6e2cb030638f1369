/** An all-gather of equal parts between ranks that share a device. */

import { invariant } from "../errors.ts";
import { elementwise } from "../kernel/elementwise.ts";
import { reads, writes } from "../kernel/make.ts";
import { wgsl } from "../kernel/text/text.ts";
import type { Kernel } from "../kernel/tree.ts";
import { SOURCES } from "./exchange.ts";

/**
 * A part of an all-gather. Bindings: `dst`, written, and `src0`, `src1`, … of the group ranks `sources`.
 * Its grid is `elementwiseGrid(words)`.
 */
export interface GatherOptions {
  readonly name: string;
  /** Words per source. */
  readonly words: number;
  /** Group ranks of the sources, at most four. */
  readonly sources: readonly number[];
  /**
   * Whether sources have a block of `words` per group rank, of which the rank's own is copied; binding `groupRank`, u32
   * [1].
   */
  readonly blocks?: boolean;
}

/** dst[sources[f]] = src f, or its block for this rank */
export function gather(o: GatherOptions): Kernel {
  invariant(o.sources.length <= SOURCES, "at most four sources");
  const from = o.blocks ? wgsl`groupRank[0] * ${o.words} + i` : wgsl`i`;
  return elementwise({
    name: o.name,
    count: o.words,
    bindings: [
      reads("groupRank", "u32"),
      ...o.sources.map((_, f) => reads(`src${f}`, "u32")),
      writes("dst", "u32"),
    ],
    body: o.sources.map((source, f) =>
      wgsl`dst[${source * o.words} + i] = src${f}[${from}];`
    ),
  });
}
