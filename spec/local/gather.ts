/** An all-gather of equal parts between ranks that share a device. */

import { invariant } from "../errors.ts";
import { add, load, mul, store, u32 } from "../kernel/build.ts";
import { elementwise } from "../kernel/elementwise.ts";
import { reads, writes } from "../kernel/make.ts";
import type { Kernel } from "../kernel/tree.ts";
import { SOURCES } from "./exchange.ts";

/**
 * A part of an all-gather. Bindings: `dst`, written, and `src0`, `src1`, … of the group ranks `sources`.
 * Its grid is `elementwiseGrid(words)`.
 */
export interface GatherOptions {
  readonly name: string;
  /** Words of each source. */
  readonly words: number;
  /** Group ranks of the sources, at most four. */
  readonly sources: readonly number[];
  /** Sources have a block of `words` for each group rank, of which the rank's own is taken; binding `position`, u32 [1]. */
  readonly blocks?: boolean;
}

/** dst[sources[f]] = src f, or its block for this rank */
export function gather(o: GatherOptions): Kernel {
  invariant(o.sources.length <= SOURCES, "at most four sources");
  return elementwise({
    name: o.name,
    count: u32(o.words),
    bindings: [
      reads("position", "u32"),
      ...o.sources.map((_, f) => reads(`src${f}`, "u32")),
      writes("dst", "u32"),
    ],
    body(i) {
      const start = mul(load("position", u32(0), "u32"), u32(o.words));
      const from = o.blocks ? add(start, i) : i;
      return o.sources.map((source, f) =>
        store(
          "dst",
          add(u32(source * o.words), i),
          load(`src${f}`, from, "u32"),
        )
      );
    },
  });
}
