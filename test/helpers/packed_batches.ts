/** Contractions with batch axes and packed weights, for tests of kernels. */

import {
  bindings,
  type Grid,
  type Kernel,
  lengthAt,
} from "../../compiler/kernels/kernel.ts";
import {
  batchesGrid,
  contractBatches,
} from "../../compiler/kernels/matmul/batches.ts";
import type { BatchesOptions } from "../../compiler/kernels/matmul/batch_tile.ts";
import { reduce } from "../../compiler/kernels/reduce.ts";
import {
  add,
  div,
  load,
  mul,
  rem,
  store,
  u32,
} from "../../spec/kernel/build.ts";
import type { BlockName } from "../../spec/weights/blocks.ts";
import { flat } from "./contracted.ts";
import { randomMatrices, transposed } from "./random_blocks.ts";
import { randoms } from "./random_values.ts";
import { weights8 } from "./stored_weights.ts";

/** A contraction of x [row, batch, k] and w to y [row, batch, column]. */
export interface PackedBatches {
  /** GGUF blocks, or elements with a scale per 32 in a binding of their own. */
  readonly stored: BlockName | "fp8x32";
  /** The innermost axis of w [batch, column, k] or [batch, k, column]. */
  readonly along: BatchesOptions["along"];
  readonly rows: number;
  readonly batches: number;
  readonly k: number;
  readonly segments: number;
  readonly columns: number;
  readonly tile: BatchesOptions["tile"];
}

/** The kernel and its operands, and a kernel with one lane per result for decoded weights. */
export function packedBatches(of: PackedBatches): {
  readonly kernel: Kernel;
  readonly grid: Grid;
  readonly plain: Kernel;
  readonly reads: { readonly [name: string]: Float32Array | Uint32Array };
  /** The decoded weights. */
  readonly values: Float32Array;
} {
  const { stored, along, rows, batches, k, segments, columns, tile } = of;
  const [outer, inner] = along === "k" ? [columns, k] : [k, columns];
  const { values, ...weights } = weightsOf(stored, {
    rows: batches * outer,
    length: inner,
  });
  const options: BatchesOptions = {
    name: "contract",
    bindings: bindings({ x: "f32", w: "u32", scales: "f32" }, { y: "f32" }),
    k,
    segments,
    columns,
    rows: lengthAt(0),
    weight: {
      binding: "w",
      stored,
      ...weights.scales ? { scales: "scales" } : {},
    },
    along,
    tile,
    arithmetic: "guarded",
    left: (at, use) => [
      use(load("x", flat([[at.row, rows], [at.batch, batches], [at.k, k]]))),
    ],
    weightRow: (at, use) => use(flat([[at.batch, batches], [at.outer, outer]])),
    epilogue: ({ row, batch, column }, sum) => [
      store("y", flat([[row, rows], [batch, batches], [column, columns]]), sum),
    ],
  };
  const plain = reduce({
    name: "contract",
    kind: "sum",
    count: mul(lengthAt(0), u32(batches * columns)),
    length: k,
    segments,
    bindings: bindings({ x: "f32", w: "f32" }, { y: "f32" }),
    terms: (i, at) => {
      const both = div(i, u32(columns));
      const batch = rem(both, u32(batches));
      const column = rem(i, u32(columns));
      const [a, b] = along === "k" ? [column, at] : [at, column];
      return [
        load("x", add(mul(both, u32(k)), at)),
        load("w", flat([[batch, batches], [a, outer], [b, inner]])),
      ];
    },
    epilogue: (i, sum) => [store("y", i, sum)],
  });
  return {
    kernel: contractBatches(options),
    grid: batchesGrid(options, { batches, rows }),
    plain,
    reads: {
      x: randoms(rows * batches * k, 1),
      w: weights.words,
      ...weights.scales ? { scales: weights.scales } : {},
      lengths: Uint32Array.of(rows),
    },
    values,
  };
}

/** Random weights [row, n], as stored and decoded. */
function weightsOf(
  stored: PackedBatches["stored"],
  { rows, length }: { readonly rows: number; readonly length: number },
): {
  readonly words: Uint32Array;
  readonly scales?: Float32Array;
  readonly values: Float32Array;
} {
  if (stored === "fp8x32") {
    const { words, scales, values } = weights8([rows * length, 1], 2);
    return { words, scales: scales as Float32Array, values };
  }
  const { words, values } = randomMatrices(stored, {
    columns: rows,
    k: length,
    experts: 1,
    seed: 2,
  });
  return { words, values: transposed(values, length) };
}
