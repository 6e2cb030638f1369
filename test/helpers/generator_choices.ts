/** Small launches of the matmuls over the choices of one token. */

import {
  choicesGroups,
  matmulOfChoices,
} from "../../compiler/kernels/matmul/choices.ts";
import { matmulCombined } from "../../compiler/kernels/matmul/combine.ts";
import { bindings, type Expr } from "../../compiler/kernels/kernel.ts";
import { matmulShape, type MatmulTile } from "../../compiler/tuning/mod.ts";
import { add, load, local, mul, store, u32 } from "../../spec/kernel/build.ts";
import { range } from "../../spec/range.ts";
import { adjacentInNorm, adjacentInX } from "./adjacent.ts";
import { product } from "./generator_sums.ts";
import type { Launch } from "./launch_faults.ts";
import { waves } from "./waves.ts";

const name = "kernel";

/** Tiles with and without adjacent columns per lane. */
const TILES: readonly MatmulTile[] = [
  { rows: 1, columns: 2, lanes: 8, split: 4 },
  { rows: 1, columns: 4, lanes: 16, split: 8, right: "vector" },
];

/** Weights of `experts` and the options of their product with row `base` of x. */
function productOf(
  { tile, k, columns, experts, packed = false }: {
    readonly tile: MatmulTile;
    readonly k: number;
    readonly columns: number;
    readonly experts: number;
    /** Weights have 4 bits. Default: false. */
    readonly packed?: boolean;
  },
) {
  const rowStride = Math.ceil(columns / 4) * 4;
  return {
    options: {
      name,
      k,
      segments: k % 64 === 0 ? 2 : k === 160 ? 4 : 1,
      columns,
      tile,
      rows: u32(1),
      grouped: { tiles: "" },
      weights: [{
        binding: "w",
        stored: packed ? "int4x32" as const : "f32" as const,
        ...packed ? { scales: "scales" } : {},
        rowStride,
      }],
      left: (base: Expr, i: Expr) => load("x", add(base, i)),
      ...tile.right === "vector" ? { leftAdjacent: adjacentInX } : {},
    },
    w: packed
      ? waves(experts * k * rowStride / 8).map((x) =>
        Math.floor(2 ** 31 * (1 + x))
      )
      : waves(experts * k * rowStride),
    scales: waves(experts * k * rowStride / 32),
  };
}

export function* ofMatmulOfChoices(): Generator<Launch> {
  const cases = product({
    tile: TILES,
    columns: [2, 10, 16],
    k: [40, 64],
    score: ["softmax", "chosenSoftmax"] as const,
    normed: [false, true],
    adjacent: [false, true],
  });
  const [experts, topK] = [5, 3];
  for (const { tile, columns, k, score, normed, adjacent } of cases) {
    // Adjacent columns require vector loads.
    if (adjacent && tile.right !== "vector") continue;
    const { options, w } = productOf({ tile, k, columns, experts });
    const full = {
      ...options,
      bindings: bindings(
        { logits: "f32", x: "f32", w: "f32" },
        { index: "u32", weight: "f32", y: "f32" },
      ),
      leftRow: () => u32(0),
      ...normed
        ? {
          left: (base: Expr, i: Expr) =>
            mul(options.left(base, i), local("norm_scale", "f32")),
          norm: { length: k, epsilon: 1e-5, load: options.left },
          leftAdjacent: options.leftAdjacent && adjacentInNorm,
        }
        : {},
      router: {
        name,
        experts,
        rule: { preset: "case", topK, score, normalize: "none" as const },
      },
      adjacent,
      choose: (choice: Expr, expert: Expr, weight: Expr) => [
        store("index", choice, expert),
        store("weight", choice, weight),
      ],
      epilogue: (
        { row, column }: { readonly row: Expr; readonly column: Expr },
        sums: readonly Expr[],
      ) => {
        const at = add(mul(row, u32(columns)), column);
        return sums.map((sum, n) => store("y", add(at, u32(n)), sum));
      },
    };
    yield {
      kernel: () => matmulOfChoices(full),
      grid: [1, choicesGroups(full), 1],
      reads: {
        // Includes equal logits.
        logits: waves(experts).map((x) => Math.round(2 * x)),
        x: waves(k),
        w,
      },
      stores: { y: topK * columns, index: topK, weight: topK },
      beyond: ["w"],
    };
  }
}

export function* ofMatmulCombined(): Generator<Launch> {
  const cases = product({
    tile: TILES,
    columns: [1, 9, 16],
    k: [40, 64, 160, 2048],
    packed: [false, true],
    choices: [1, 3, 8],
    weighed: [false, true],
  });
  const experts = 3;
  for (const { tile, columns, k, packed, choices, weighed } of cases) {
    // Groups are whole. The interpreter is slow on long sums.
    if (packed !== (k === 160) || k > 160 && (columns > 1 || choices < 8)) {
      continue;
    }
    const { options, w, scales } = productOf({
      tile,
      k,
      columns,
      experts,
      packed,
    });
    const full = {
      ...options,
      bindings: bindings(
        {
          x: "f32",
          ...packed ? { w: "u32", scales: "f32" } : { w: "f32" },
          index: "u32",
          weight: "f32",
        },
        { y: "f32" },
      ),
      choices,
      leftRow: (row: Expr) => mul(row, u32(k)),
      expert: (choice: Expr) => load("index", choice, "u32"),
      ...weighed ? { weight: (choice: Expr) => load("weight", choice) } : {},
      result: (
        _: unknown,
        sum: Expr,
        use: (value: Expr) => ReturnType<typeof stored>,
      ) => use(sum),
      epilogue: stored,
    };
    const { columns: each } = matmulShape(full);
    yield {
      kernel: () => matmulCombined(full),
      grid: [1, Math.ceil(columns / each), 1],
      reads: {
        x: waves(choices * k),
        w,
        ...packed ? { scales } : {},
        index: range(choices).map((j) => j % experts),
        weight: waves(choices),
      },
      stores: { y: columns },
      beyond: packed ? ["w", "scales"] : ["w"],
    };
  }
}

function stored(column: Expr, value: Expr) {
  return [store("y", column, value)];
}
