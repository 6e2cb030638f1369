/** Small launches of contractions with 16-bit operands, and with packed weights. */

import { contracted } from "./contracted.ts";
import type { Launch } from "./launch_faults.ts";
import { packedBatches } from "./packed_batches.ts";
import { waves } from "./waves.ts";

export function* ofContractMatrices(): Generator<Launch> {
  for (const columns of [33, 70]) {
    for (const rows of [0, 17, 65]) {
      const [batches, k] = [3, 32];
      const { kernel, grid } = contracted({ rows, batches, k, columns });
      yield {
        kernel: () => kernel,
        grid,
        reads: {
          x: waves(rows * batches * k),
          w: waves(batches * k * columns),
          lengths: [rows],
        },
        stores: { y: rows * batches * columns },
      };
    }
  }
}

/** Tiles with one part of the columns and several, and with rows one by one. */
const TILE = { rows: 2, columns: 32, most: 4, fewest: 3, bytes: 32768 };

export function* ofContractBatches(): Generator<Launch> {
  const sizes = { batches: 2, k: 64, segments: 2 };
  for (
    const [stored, along, columns] of [
      ["q5_0", "k", 70],
      ["fp8x32", "k", 9],
      ["q5_0", "columns", 96],
      ["fp8x32", "columns", 32],
      ["q4_k", "columns", 768],
    ] as const
  ) {
    for (const rows of [0, 1, 2, 7]) {
      for (const bytes of along === "k" ? [0] : [0, TILE.bytes]) {
        const { kernel, grid, reads } = packedBatches({
          ...sizes,
          stored,
          along,
          columns,
          rows,
          tile: { ...TILE, bytes },
        });
        yield {
          kernel: () => kernel,
          grid,
          reads,
          stores: { y: rows * sizes.batches * columns },
          beyond: stored === "fp8x32" ? ["w", "scales"] : ["w"],
        };
      }
    }
  }
}
