/**
 * Grouped expert matmul on the CPU device: GFLOP/s by tile. Run: npm run -s bench -- cpu_matmul [rows columns lanes]…
 */

import { matmul } from "../compiler/kernels/mod.ts";
import { matmulGrid, type MatmulTile } from "../compiler/tuning/mod.ts";
import { createCpuDevice } from "../runtime/cpu/mod.ts";
import { add, load, mul, store, u32 } from "../spec/kernel/build.ts";
import type { StoredDType } from "../spec/dtype.ts";
import type { Binding } from "../spec/kernel/tree.ts";
import { evaluateSize } from "../spec/size.ts";

const EXPERTS = 8;
const ROWS = 64;
const K = 512;
const COLUMNS = 1024;

/** Returns the median GFLOP/s of several launches of one tile. */
async function measure(
  tile: MatmulTile,
  options: { threads: number; stored: StoredDType },
): Promise<number> {
  const { threads, stored } = options;
  const packed = stored === "f16" || stored === "bf16";
  const bindings: Binding[] = [
    { name: "x", type: "f32", access: "read" },
    { name: "w", type: packed ? "u32" : "f32", access: "read" },
    { name: "tiles", type: "u32", access: "read" },
    { name: "y", type: "f32", access: "write" },
  ];
  const shape = {
    name: "matmul",
    k: K,
    columns: COLUMNS,
    bindings,
    weights: [{ binding: "w", stored, rowStride: COLUMNS }],
    tile,
    rows: u32(0),
    grouped: { tiles: "tiles" },
  };
  const tree = matmul({
    ...shape,
    leftRow: (row) => mul(row, u32(K)),
    left: (base, k) => load("x", add(base, k)),
    epilogue: ({ row, column }, [sum]) => [
      store("y", add(mul(row, u32(COLUMNS)), column), sum!),
    ],
  });
  const device = await createCpuDevice({ threads });
  await device.prepare({ matmul: { tree } });
  const rows = EXPERTS * ROWS;
  const tiles = [];
  for (let expert = 0; expert < EXPERTS; expert++) {
    for (let row = 0; row < ROWS; row += tile.rows) {
      tiles.push(
        expert,
        expert * ROWS + row,
        Math.min(tile.rows, ROWS - row),
      );
    }
  }
  const words = Uint32Array.of(tiles.length / 3, ...tiles);
  const weightBytes = EXPERTS * K * COLUMNS * (packed ? 2 : 4);
  const buffers = [
    device.createBuffer(rows * K * 4, "x"),
    device.createBuffer(weightBytes, "w"),
    device.createBuffer(words.byteLength, "tiles"),
    device.createBuffer(rows * COLUMNS * 4, "y"),
  ];
  const x = Float32Array.from({ length: rows * K }, (_, i) => Math.sin(i));
  device.write(buffers[0]!, 0, new Uint8Array(x.buffer));
  if (!packed) {
    const w = Float32Array.from(
      { length: EXPERTS * K * COLUMNS },
      (_, i) => Math.cos(i),
    );
    device.write(buffers[1]!, 0, new Uint8Array(w.buffer));
  }
  device.write(buffers[2]!, 0, new Uint8Array(words.buffer));
  const grid = matmulGrid(shape, tiles.length / 3)
    .map((size) => evaluateSize(size, () => NaN)) as [number, number, number];
  const flops = 2 * rows * K * COLUMNS;
  const rates: number[] = [];
  for (let run = 0; run < 24; run++) {
    const start = performance.now();
    device.launch("matmul", buffers, grid);
    await device.idle();
    rates.push(flops / (performance.now() - start) / 1e6);
  }
  device.destroy();
  // Excludes the first runs, before the engine has optimized the kernel.
  return rates.slice(8).sort((a, b) => a - b)[8]!;
}

const given = process.argv.slice(2).map(Number);
const tiles: MatmulTile[] = [];
for (let i = 0; i + 2 < given.length; i += 3) {
  tiles.push({
    rows: given[i]!,
    columns: given[i + 1]!,
    lanes: given[i + 2]!,
  });
}
if (tiles.length === 0) tiles.push({ rows: 4, columns: 4, lanes: 4 });
for (const tile of tiles) {
  for (const stored of ["f32", "f16", "bf16"] as const) {
    const [one, two] = [
      await measure(tile, { threads: 1, stored }),
      await measure(tile, { threads: 2, stored }),
    ];
    console.log(
      `${tile.rows}x${tile.columns} lanes ${tile.lanes} ${stored}: ` +
        `${one.toFixed(1)} GFLOP/s on 1 thread, ${two.toFixed(1)} on 2`,
    );
  }
}
