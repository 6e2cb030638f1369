/** Small launches of the generators of sums, norms and products, at sizes around those where kernels differ. */

import { addParts } from "../../compiler/kernels/add_parts.ts";
import {
  expertOuter,
  expertOuterGrid,
  rowStarts,
} from "../../compiler/kernels/matmul/expert_outer.ts";
import {
  bindings,
  type Expr,
  lengthAt,
  type Stmt,
} from "../../compiler/kernels/kernel.ts";
import { elementwiseGrid } from "../../spec/kernel/elementwise.ts";
import { matmul } from "../../compiler/kernels/matmul/matmul.ts";
import { matmulMatrices } from "../../compiler/kernels/matmul/matrices.ts";
import {
  matmulGrid,
  matmulShape,
  type MatmulTile,
  matrixGrid,
  type MatrixShape,
} from "../../compiler/tuning/mod.ts";
import { reduce, type ReduceOptions } from "../../compiler/kernels/reduce.ts";
import { reduceInTeams } from "../../compiler/kernels/reduce_teams.ts";
import { rmsNorm, rowsGrid, softmax } from "../../compiler/kernels/rows.ts";
import {
  segmentCells,
  segmentSum,
} from "../../compiler/kernels/segment_sum.ts";
import {
  topK,
  topKGrid,
  topKPart,
  topKParts,
} from "../../compiler/kernels/top_k.ts";
import {
  add,
  f32,
  load,
  local,
  lt,
  mul,
  store,
  u32,
} from "../../spec/kernel/build.ts";
import { packingOf } from "../../spec/weights/packed.ts";
import { adjacentInNorm, adjacentInX } from "./adjacent.ts";
import type { Launch } from "./launch_faults.ts";
import type { BlocksDType } from "./random_blocks.ts";
import { waves } from "./waves.ts";

const name = "kernel";

/** Element counts around a workgroup of 64. */
const COUNTS = [0, 1, 2, 64, 65];

const at = (binding: string, row: Expr, width: number, i: Expr): Expr =>
  load(binding, add(mul(row, u32(width)), i));

const stored = (i: Expr, value: Expr): readonly Stmt[] => [
  store("y", i, value),
];

/** Yields all combinations of one value per list. */
export function* product<T extends object>(
  lists: { readonly [K in keyof T]: readonly T[K][] },
): Generator<T> {
  const [first, ...rest] = Object.entries(lists) as [
    string,
    readonly unknown[],
  ][];
  if (!first) return yield {} as T;
  for (const value of first[1]) {
    for (
      const others of product(
        Object.fromEntries(rest) as { [K in keyof T]: readonly T[K][] },
      )
    ) yield { [first[0]]: value, ...others } as T;
  }
}

export function* ofAddParts(): Generator<Launch> {
  for (const parts of [1, 2, 3, 7, 8, 9, 16, 17]) {
    for (const count of COUNTS) {
      yield {
        kernel: () =>
          addParts({
            name,
            parts,
            count: lengthAt(0),
            epilogue: stored,
            bindings: bindings({ x: "f32" }, { y: "f32" }),
            load: (i, rank) => load("x", add(mul(rank, lengthAt(0)), i)),
          }),
        grid: elementwiseGrid(count),
        reads: { x: waves(parts * count), lengths: [count] },
        stores: { y: count },
      };
    }
  }
}

export function* ofReduce(): Generator<Launch> {
  const kinds = ["sum", "mean", "max", "logSumExp"] as const;
  for (const kind of kinds) {
    for (const length of [0, 1, 2, 31, 32, 33, 64, 66]) {
      const lengths: ReduceOptions["length"][] = [length, lengthAt(1)];
      if (kind === "sum") {
        lengths.push((i) => [load("begin", i, "u32"), load("end", i, "u32")]);
      }
      for (const [form, reduced] of lengths.entries()) {
        const count = COUNTS[(length + form) % COUNTS.length]!;
        const rows = Array.from({ length: count }, (_, i) => i);
        yield {
          kernel: () =>
            reduce({
              name,
              kind,
              count: lengthAt(0),
              length: reduced,
              ...form === 0 && kind === "sum" && length % 2 === 0 && length > 0
                ? { segments: 2 }
                : {},
              bindings: bindings(
                { x: "f32", begin: "u32", end: "u32" },
                { y: "f32" },
              ),
              terms: (i, k) => [
                form === 2 ? load("x", k) : at("x", i, length, k),
              ],
              epilogue: stored,
              ...form === 1
                ? {
                  others: {
                    isResult: (i) => lt(i, u32(2)),
                    store: (i) => stored(i, f32(0)),
                  },
                }
                : {},
            }),
          grid: elementwiseGrid(count),
          reads: {
            x: waves(count * length),
            lengths: [count, length],
            begin: rows.map((i) => i * length),
            end: rows.map((i) => (i + 1) * length),
          },
          stores: { y: count },
        };
      }
    }
  }
}

export function* ofReduceInTeams(): Generator<Launch> {
  for (const [length, segments] of [[32, 4], [96, 8]] as const) {
    for (const count of COUNTS) {
      yield {
        kernel: () =>
          reduceInTeams({
            name,
            kind: "sum",
            count: lengthAt(0),
            length,
            segments,
            bindings: bindings({ x: "f32" }, { y: "f32" }),
            terms: (i, k) => [at("x", i, length, k), load("x", k)],
            epilogue: stored,
          }),
        grid: elementwiseGrid(count),
        reads: { x: waves(Math.max(count, 1) * length), lengths: [count] },
        stores: { y: count },
      };
    }
  }
}

function* ofRows(make: typeof softmax): Generator<Launch> {
  for (const length of [1, 2, 7, 8, 9, 32, 33, 257]) {
    for (const rows of [0, 1, 3]) {
      for (const actual of [undefined, length, Math.ceil(length / 2)]) {
        const width = actual ?? length;
        yield {
          kernel: () =>
            make({
              name,
              rows: lengthAt(0),
              length,
              actual: actual === undefined ? undefined : lengthAt(1),
              bindings: bindings({ x: "f32" }, { y: "f32" }),
              load: (row, i) => at("x", row, width, i),
              epilogue: (row, i, value) =>
                stored(add(mul(row, u32(width)), i), value(i)),
            }),
          grid: rowsGrid(rows),
          reads: { x: waves(rows * width), lengths: [rows, width] },
          stores: { y: rows * width },
        };
      }
    }
  }
}

export const ofSoftmax = (): Generator<Launch> => ofRows(softmax);

export function* ofRmsNorm(): Generator<Launch> {
  yield* ofRows((o) => rmsNorm({ ...o, epsilon: 1e-5 }));
  // Results continue beyond the row.
  for (const end of [33, 100]) {
    const to = (row: Expr, i: Expr) => add(mul(row, u32(end)), i);
    yield {
      kernel: () =>
        rmsNorm({
          name,
          rows: lengthAt(0),
          length: 32,
          epsilon: 1e-5,
          bindings: bindings({ x: "f32" }, { y: "f32" }),
          load: (row, i) => at("x", row, 32, i),
          epilogue: (row, i, value) => stored(to(row, i), value(i)),
          others: { end, store: (row, i) => stored(to(row, i), f32(0)) },
        }),
      grid: rowsGrid(3),
      reads: { x: waves(3 * 32), lengths: [3] },
      stores: { y: 3 * end },
    };
  }
}

export function* ofTopK(): Generator<Launch> {
  for (const count of [1, 2, 7, 8, 9, 33, 257]) {
    for (const k of [1, 2, 5].filter((k) => k <= count)) {
      for (const rows of [0, 1, 3]) {
        yield {
          kernel: () => topK({ name, rows: lengthAt(0), count, k }),
          grid: rowsGrid(rows),
          // Includes equal values.
          reads: {
            x: waves(rows * count).map((x) => Math.round(2 * x)),
            lengths: [rows],
          },
          stores: { values: rows * k, indices: rows * k },
        };
      }
    }
  }
}

export function* ofTopKPart(): Generator<Launch> {
  for (const count of [1, 7, 64, 2049]) {
    for (const k of [1, 5].filter((k) => k <= count)) {
      for (const indexed of [false, true]) {
        const rows = 2;
        const stored = rows * topKParts(count) * k;
        yield {
          kernel: () =>
            topKPart({ name, rows: lengthAt(0), count, k, indexed }),
          grid: topKGrid(count, rows),
          reads: {
            x: waves(rows * count).map((x) => Math.round(2 * x)),
            candidates: waves(rows * count).map((_, i) => i),
            lengths: [rows],
          },
          stores: { values: stored, indices: stored },
        };
      }
    }
  }
}

export function* ofSegmentSum(): Generator<Launch> {
  for (const width of [1, 2, 3, 4, 8, 12, 16, 32, 64]) {
    for (const segments of [0, 1, 3]) {
      for (const length of [0, 1, 2, 33]) {
        const count = segments * width;
        yield {
          kernel: () =>
            segmentSum({
              name,
              width,
              count: lengthAt(0),
              length: lengthAt(1),
              bindings: bindings({ of: "i32", x: "f32" }, { y: "f32" }),
              index: (_, k) => load("of", k, "i32"),
              wanted: (i) => ({
                op: "binary",
                type: "u32",
                fn: "div",
                a: i,
                b: u32(width),
              }),
              value: (i, k) =>
                at("x", k, width, {
                  op: "binary",
                  type: "u32",
                  fn: "rem",
                  a: i,
                  b: u32(width),
                }),
              epilogue: stored,
            }),
          grid: elementwiseGrid(count / segmentCells(width)),
          reads: {
            x: waves(length * width),
            lengths: [count, length],
            of: Array.from({ length }, (_, k) => k % 3),
          },
          stores: { y: count },
        };
      }
    }
  }
}

/** Rows of each of three experts. */
const ROWS_OF_EXPERTS = [[0, 0, 0], [1, 0, 2], [0, 3, 0], [33, 1, 0]];

export function* ofRowStarts(): Generator<Launch> {
  for (const counts of ROWS_OF_EXPERTS) {
    const expertOf = counts.flatMap((n, e) => new Array<number>(n).fill(e));
    yield {
      kernel: () => rowStarts(name, counts.length),
      grid: elementwiseGrid(counts.length + 1),
      reads: { expertOf, rowCount: [expertOf.length] },
      stores: { starts: counts.length + 1 },
    };
  }
}

const OUTER_TILES: readonly MatmulTile[] = [
  { rows: 1, columns: 1, lanes: 4 },
  { rows: 2, columns: 2, lanes: 2 },
  { rows: 3, columns: 1, lanes: 8 },
];

export function* ofExpertOuter(): Generator<Launch> {
  for (
    const { counts, tile, rows, columns, localExperts } of product<{
      counts: number[];
      tile: MatmulTile;
      rows: number;
      columns: number;
      localExperts: number;
    }>({
      counts: ROWS_OF_EXPERTS,
      tile: OUTER_TILES,
      rows: [1, 2, 3, 4],
      columns: [1, 4, 5],
      localExperts: [0, 1, 3],
    })
  ) {
    const starts = [0, 1, 2, 3].map((e) =>
      counts.slice(0, e).reduce((a, b) => a + b, 0)
    );
    yield {
      kernel: () =>
        expertOuter({
          name,
          experts: 3,
          localExperts: lengthAt(0),
          rows,
          columns,
          tile,
          bindings: bindings(
            { down: "f32", across: "f32", starts: "u32" },
            { y: "f32" },
          ),
          range: (expert) => [
            load("starts", expert, "u32"),
            load("starts", add(expert, u32(1)), "u32"),
          ],
          left: (row, grouped) => at("down", grouped, rows, row),
          right: (column, grouped) => at("across", grouped, columns, column),
          block: (make) => make(),
          epilogue: ({ expert, row, column }, sum) =>
            stored(
              add(
                mul(add(mul(expert, u32(rows)), row), u32(columns)),
                column,
              ),
              sum,
            ),
        }),
      grid: expertOuterGrid({ experts: 3, rows, columns, tile }),
      reads: {
        down: waves(starts[localExperts]! * rows),
        across: waves(starts[localExperts]! * columns),
        starts,
        lengths: [localExperts],
      },
      stores: { y: localExperts * rows * columns },
    };
  }
}

const TILES: readonly MatmulTile[] = [
  { rows: 1, columns: 1, lanes: 1 },
  { rows: 2, columns: 2, lanes: 4 },
  { rows: 2, columns: 2, lanes: 8, split: 2 },
  { rows: 1, columns: 2, lanes: 8, split: 4, left: "workgroup" },
  { rows: 2, columns: 4, lanes: 4, right: "vector" },
  { rows: 2, columns: 2, lanes: 8, split: 2, right: "workgroup" },
  { rows: 3, columns: 2, lanes: 6, split: 3 },
];

/** Weights in GGUF blocks: the innermost axis, and k. Some have planes of fewer bits, offsets, or table entries. */
const BLOCKS = [
  ["q8_0", "k", 64],
  ["q5_0", "k", 64],
  ["iq4_nl", "k", 64],
  ["q4_k", "k", 256],
  ["q6_k", "k", 256],
  ["iq4_xs", "k", 256],
  ["q4_1_words", "n", 64],
  ["q6_k_words", "n", 256],
] as const;

/** Tiles for weights with an innermost axis. */
const BLOCK_TILES: {
  readonly [I in "n" | "k"]: readonly MatmulTile[];
} = {
  k: [
    { rows: 2, columns: 2, lanes: 4 },
    { rows: 3, columns: 2, lanes: 16, split: 4, right: "workgroup" },
  ],
  n: [
    { rows: 2, columns: 2, lanes: 4 },
    { rows: 1, columns: 4, lanes: 16, split: 8, right: "vector" },
    { rows: 2, columns: 2, lanes: 8, split: 2, right: "workgroup" },
  ],
};

export function* ofMatmul(): Generator<Launch> {
  const ofOneRow: MatmulTile = { rows: 1, columns: 2, lanes: 8, split: 4 };
  for (const rows of [0, 1]) {
    for (const columns of [1, 9]) {
      for (const adjacent of [false, true]) {
        const k = adjacent ? 64 : 40;
        const shape = { columns, rows, k, grouped: false, adjacent };
        yield productLaunch(ofOneRow, { ...shape, normed: true });
      }
    }
    // The only block of a team is loaded before the norm's barrier.
    for (const [columns, lanes] of [[2, 8], [10, 16]] as const) {
      const shape = { columns, rows, k: 64, grouped: false, normed: true };
      yield productLaunch({ ...ofOneRow, lanes }, { ...shape, stored: "bf16" });
    }
  }
  // One row with k innermost in the weights: lanes sum different blocks of k.
  const ofRuns: MatmulTile = {
    rows: 2,
    columns: 2,
    lanes: 16,
    split: 4,
    right: "workgroup",
  };
  for (const [columns, grouped] of [[4, true], [11, false]] as const) {
    const shape = { columns, rows: 1, grouped, inside: "k" as const };
    yield productLaunch(ofRuns, { ...shape, k: 512 });
    const ofShortRuns = { ...ofRuns, vector: 2 };
    yield productLaunch(ofShortRuns, { ...shape, k: 128, stored: "bf16" });
  }
  for (const [stored, inside, k] of BLOCKS) {
    for (const tile of BLOCK_TILES[inside]) {
      const rows = tile.rows * (tile.split ?? 1) + 1;
      const shape = { k, inside, stored, columns: 5 };
      yield productLaunch(tile, { ...shape, rows: 1, grouped: false });
      yield productLaunch(tile, { ...shape, rows, grouped: true });
    }
  }
  const ofTeams: MatmulTile = { rows: 4, columns: 2, lanes: 8, split: 4 };
  for (const rows of [0, 3, 4, 9]) {
    const shape = { columns: 5, rows, k: 96, grouped: false, inTeams: true };
    yield productLaunch(ofTeams, shape);
    yield productLaunch(ofTeams, { ...shape, adjacent: true });
  }
  for (const tile of TILES) {
    const height = tile.rows * (tile.split ?? 1);
    for (const columns of [1, 2, 4, 5, 9]) {
      for (const rows of new Set([0, 1, height, height + 1])) {
        for (
          const [k, grouped] of [[3, false], [64, false], [32, true]] as const
        ) {
          yield productLaunch(tile, { columns, rows, k, grouped });
        }
      }
    }
  }
}

export function* ofMatmulMatrices(): Generator<Launch> {
  const tile: MatmulTile = { rows: 4, columns: 4, lanes: 32 };
  const matrices = { rows: 16, columns: 128, depth: 16 };
  for (const columns of [33, 130]) {
    for (const rows of [0, 17]) {
      const shape = { columns, rows, k: 16, grouped: rows > 0, matrices };
      yield productLaunch(tile, shape);
    }
  }
}

function productLaunch(
  tile: MatmulTile,
  {
    columns,
    rows,
    k,
    grouped,
    normed = false,
    inTeams = false,
    adjacent = false,
    matrices,
    inside = "n",
    stored: dtype = "f32",
  }: {
    readonly columns: number;
    readonly rows: number;
    readonly k: number;
    readonly grouped: boolean;
    /** Stores the norm of the only row. */
    readonly normed?: boolean;
    /** Teams of lanes sum different blocks of k. */
    readonly inTeams?: boolean;
    /** Loads adjacent elements of the left operand at once. */
    readonly adjacent?: boolean;
    /** Shape of hardware matrices with 16-bit operands. */
    readonly matrices?: MatrixShape;
    /** Innermost axis of the weights. */
    readonly inside?: "n" | "k";
    /** Encoding of the weights. Default: f32. */
    readonly stored?: "f32" | "bf16" | BlocksDType;
  },
): Launch {
  const counts = grouped ? [rows, 1, 0] : [rows];
  const { block } = packingOf(dtype) ?? {};
  const all = counts.reduce((a, b) => a + b, 0);
  const rowStride = inside === "k"
    ? k
    : columns % 2 === 1
    ? columns
    : Math.ceil(columns / 4) * 4;
  const element = (base: Expr, k: Expr) => load("x", add(base, k));
  const scaled = (base: Expr, k: Expr) =>
    mul(element(base, k), local("norm_scale", "f32"));
  const options = {
    name,
    k,
    segments: inside === "k" ? 4 : k % 2 === 0 ? 2 : 1,
    columns,
    tile,
    inTeams,
    bindings: bindings(
      { x: "f32", w: dtype === "f32" ? "f32" : "u32", tiles: "u32" },
      { y: "f32", normed: "f32" },
    ),
    weights: [{
      binding: "w",
      stored: dtype,
      rowStride,
      inside,
      ...block ? { scales: "w" } : {},
    }],
    rows: lengthAt(0),
    ...grouped ? { grouped: { tiles: "tiles" } } : {},
    leftRow: (row: Expr) => mul(row, u32(k)),
    left: normed ? scaled : element,
    ...adjacent ? { leftAdjacent: normed ? adjacentInNorm : adjacentInX } : {},
    ...normed
      ? {
        norm: {
          length: k,
          epsilon: 1e-5,
          load: element,
          ...adjacent ? { adjacent: adjacentInX } : {},
          store: (base: Expr, k: Expr, value: Expr) => [
            store("normed", add(base, k), value),
          ],
        },
      }
      : {},
    epilogue: (
      { row, column }: { readonly row: Expr; readonly column: Expr },
      [sum]: readonly Expr[],
    ) => stored(add(mul(row, u32(columns)), column), sum!),
  };
  const elements = counts.length * (inside === "k" ? columns : k) * rowStride;
  const words = block
    ? Math.ceil(elements / block.elements * block.bytes / 4)
    : dtype === "bf16"
    ? elements / 2
    : elements;
  const shape = matrices ?? matmulShape(options);
  const tiles: number[] = [];
  let first = 0;
  for (const [expert, count] of counts.entries()) {
    for (let row = 0; row < count; row += shape.rows) {
      tiles.push(expert, first + row, Math.min(shape.rows, count - row));
    }
    first += count;
  }
  // One tile more than exist.
  const size = grouped ? tiles.length / 3 + 1 : all;
  return {
    ...matrices
      ? {
        kernel: () => matmulMatrices(options, matrices),
        grid: matrixGrid(matrices, { grouped, width: columns, size }),
      }
      : { kernel: () => matmul(options), grid: matmulGrid(options, size) },
    reads: {
      x: waves(all * k),
      lengths: [all],
      w: dtype === "f32"
        ? waves(words)
        : new Array<number>(words).fill(0x3f803f80),
      tiles: [tiles.length / 3, ...tiles],
    },
    stores: { y: all * columns, ...normed ? { normed: all * k } : {} },
    // Weights beyond the last column are loaded but not used.
    beyond: ["w"],
  };
}
