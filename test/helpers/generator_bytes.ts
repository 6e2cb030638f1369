/** Small launches of the generators of quantized rows and their matmuls. */

import { matmulBytes } from "../../compiler/kernels/matmul/bytes.ts";
import { quantizedLayoutOf } from "../../compiler/kernels/matmul/bytes_operands.ts";
import { bindings, lengthAt } from "../../compiler/kernels/mod.ts";
import { quantize, quantizedRow } from "../../compiler/kernels/quantize.ts";
import { matmulGrid, type MatmulTile } from "../../compiler/tuning/mod.ts";
import { elementwiseGrid } from "../../spec/kernel/elementwise.ts";
import { load, store } from "../../spec/kernel/build.ts";
import { expr } from "../../spec/kernel/text/resolve.ts";
import { STORED_BYTES } from "../../spec/dtype.ts";
import {
  type PackedDType,
  type Packing,
  PACKINGS,
  type ScaleKind,
  SCALES,
} from "../../spec/weights/packed.ts";
import type { Expr } from "../../spec/kernel/tree.ts";
import type { Launch } from "./launch_faults.ts";
import { waves } from "./waves.ts";

const name = "kernel";

export function* ofQuantize(): Generator<Launch> {
  for (const order of ["consecutive", "alternate"] as const) {
    for (const sumOf of [16, 32] as const) {
      for (const [rows, k] of [[0, 32], [1, 32], [3, 64]] as const) {
        yield {
          kernel: () =>
            quantize({
              name,
              order,
              sumOf,
              bindings: bindings({ x: "f32" }, { rows: "u32" }),
              k,
              blocks: lengthAt(0),
              at: (block, j) => load("x", expr`${block} * 32 + ${j}`),
              to: "rows",
            }),
          grid: elementwiseGrid(rows * k / 32),
          reads: { x: waves(rows * k), lengths: [rows * k / 32] },
          stores: { rows: rows * quantizedRow(k, { sumOf }).words },
        };
      }
    }
  }
}

const TILES: readonly MatmulTile[] = [
  { rows: 2, columns: 2, lanes: 8 },
  { rows: 2, columns: 1, lanes: 16, split: 4 },
  { rows: 1, columns: 2, lanes: 16, split: 4, right: "workgroup" },
];

export function* ofMatmulBytes(): Generator<Launch> {
  for (
    const stored of [
      "int8x32",
      "int4x32",
      "int4x32_bf16",
      "mxfp4",
      "uint4x32",
      "uint4x32_f16_zero",
      "uint4x64_bf16_zero",
      "q4_0_words",
      "q5_1_words",
    ] as const
  ) {
    for (const tile of TILES) {
      for (const columns of [4, 12]) {
        for (const rows of [0, 1, 3, 9]) {
          yield productLaunch({ stored, tile, columns, rows });
        }
      }
    }
  }
  // One row with weights in blocks; the block count is a multiple of the lanes or not.
  for (const k of [128, 160]) {
    for (const rows of [1, 2]) {
      const tile = TILES.at(-1)!;
      const shape = { stored: "q8_0", columns: 12, rows, k } as const;
      yield productLaunch({ ...shape, tile });
      // Teams have four lanes.
      for (const vector of [2, 3]) {
        yield productLaunch({ ...shape, tile: { ...tile, vector } });
      }
    }
  }
  // One row by the parts of columns: a block is a part of the sum, or several.
  const parts = { rows: 2, columns: 1, lanes: 16, vector: 8 } as const;
  for (const k of [2048, 1024, 256]) {
    for (const tile of [parts, { ...parts, split: 2 }]) {
      const shape = { stored: "q4_k", columns: 20, rows: 1, k } as const;
      yield productLaunch({ ...shape, tile });
    }
  }
}

function productLaunch(
  { stored, tile, columns, rows, k = 64 }: {
    readonly stored: PackedDType;
    readonly tile: MatmulTile;
    readonly columns: number;
    readonly rows: number;
    readonly k?: number;
  },
): Launch {
  const layout = quantizedLayoutOf(stored);
  const { perWord, perScale = k, scale, names, block, inWords }: Packing =
    PACKINGS[stored];
  const { stored: scaleType, beforeZero }: ScaleKind = SCALES[scale];
  const offsets = beforeZero ? "scales" : names.offsets && "offsets";
  const options = {
    name,
    k,
    columns,
    tile,
    rows: lengthAt(0),
    bindings: bindings({
      left: "u32",
      weight: "u32",
      ...block ? {} : { scales: scaleType === "f32" ? "f32" : "u32" },
      ...names.offsets === undefined ? {} : { offsets: "f32" },
    }, { y: "f32" }),
    weights: [{
      binding: "weight",
      stored,
      scales: block ? "weight" : "scales",
      ...block && !inWords ? { inside: "k" as const } : {},
      ...offsets === undefined ? {} : { offsets },
      left: "left",
    }],
    leftRow: (row: Expr) => row,
    epilogue: (
      { row, column }: { readonly row: Expr; readonly column: Expr },
      [sum]: readonly Expr[],
    ) => [store("y", expr`${row} * ${columns} + ${column}`, sum!)],
  };
  const scales = columns * k / perScale;
  return {
    kernel: () => matmulBytes(options),
    grid: matmulGrid(options, rows),
    reads: {
      left: new Array(rows * quantizedRow(k, layout).words).fill(1),
      weight: new Array(
        block
          ? Math.ceil(columns * k / block.elements * block.bytes / 4)
          : columns * k / perWord,
      ).fill(0x12345678),
      scales: scaleType === "f32"
        ? waves(scales)
        : new Array(Math.ceil(scales * STORED_BYTES[scaleType] / 4))
          .fill(0x3f803f80),
      offsets: waves(scales),
      lengths: [rows],
    },
    stores: { y: rows * columns },
    // Weights beyond the last column and row operand are loaded but not used.
    beyond: ["weight", "scales", "offsets"],
  };
}
