/** Contractions with batch axes and packed weights have the bits of those with decoded weights. */
// needs: cpu, gpu
// rotates with: compiler/kernels/matmul/, compiler/kernels/pieces/, spec/weights/

import { elementwiseGrid } from "../compiler/kernels/mod.ts";
import { packedBatches } from "./helpers/packed_batches.ts";
import { bits, testKernels, workgroups } from "./helpers/run_kernel.ts";

/** Encodings with the lengths of their rows. */
const ENCODINGS = [
  ["q8_0", 32],
  ["q5_0", 96],
  ["iq4_nl", 160],
  ["q4_k", 512],
  ["q6_k", 256],
  ["fp8x32", 64],
] as const;

const TILE = { rows: 4, columns: 32, most: 16, fewest: 4 };

for (const along of ["k", "columns"] as const) {
  testKernels(
    `contractBatches() has the bits of decoded weights: words along ${along}`,
    async (t, target) => {
      for (const [stored, length] of ENCODINGS) {
        const [k, columns] = along === "k" ? [length, 70] : [48, length];
        const sizes = { stored, along, batches: 3, k, columns, segments: 2 };
        for (const rows of [1, 3, 21]) {
          for (const bytes of along === "k" ? [0] : [0, 16384]) {
            const { kernel, grid, plain, reads, values } = packedBatches({
              ...sizes,
              rows,
              tile: { ...TILE, bytes },
            });
            const count = rows * sizes.batches * columns;
            const y = new Float32Array(count);
            const found = await target.run(
              kernel,
              { scales: new Float32Array(1), ...reads, y },
              workgroups(grid),
            );
            const wanted = await target.run(
              plain,
              { ...reads, w: values, y: y.slice() },
              workgroups(elementwiseGrid(count)),
            );
            t.strictSame(
              bits(found.y!),
              bits(wanted.y!),
              `${stored}, ${rows} rows, ${bytes} bytes`,
            );
          }
        }
      }
    },
  );
}
