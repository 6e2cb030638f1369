/** Small launches of contractions with 16-bit operands. */

import { contracted } from "./contracted.ts";
import type { Launch } from "./launch_faults.ts";
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
