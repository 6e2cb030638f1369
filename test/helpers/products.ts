/** Matrix products for tests of kernels: operands, results of kernels, and expected results. */

import {
  type Grid,
  lengthAt,
  matmul,
  matmulMatrices,
  type MatmulOptions,
  reads,
  rmsNorm,
  rowsGrid,
  writes,
} from "../../compiler/kernels/mod.ts";
import {
  DEFAULT_TILE,
  matmulGrid,
  matmulShape,
  type MatmulTile,
  matrixGrid,
  matrixTiling,
  sumsInTeams,
} from "../../compiler/tuning/mod.ts";
import {
  add,
  let_,
  load,
  local,
  mul,
  store,
  u32,
} from "../../spec/kernel/build.ts";
import { tileOfWeights } from "../../compiler/tuning/tile.ts";
import type { Kernel } from "../../spec/kernel/tree.ts";
import { packingOf } from "../../spec/weights/packed.ts";
import { ADJACENT } from "../../compiler/kernels/pieces/adjacent.ts";
import { adjacentIn, adjacentInX } from "./adjacent.ts";
import { inWords } from "./halves.ts";
import { blockedRow } from "./kernel_reference.ts";
import { type BlocksDType, randomMatrices } from "./random_blocks.ts";
import { type KernelTarget, type Words, workgroups } from "./run_kernel.ts";
import { randoms } from "./random_values.ts";
import {
  INTEGERS,
  type StoredWeights,
  weights16,
  weights4,
  weights8,
  weightsNv4,
} from "./stored_weights.ts";

/** Storage formats of weights. */
export const STORED = [
  "f32",
  "bf16",
  "f16",
  "mxfp4",
  "fp4x16",
  "int4x32_bf16",
  "uint4x32_f16_zero",
  "fp8x32",
  "q5_0",
  "iq4_nl",
  "q4_1_words",
] as const;

/** GGUF blocks of 32 elements: as bytes with k innermost, or as words. */
type Blocks = Extract<typeof STORED[number], BlocksDType>;

/** Whether elements are in GGUF blocks. */
function isInBlocks(stored: typeof STORED[number]): stored is Blocks {
  return packingOf(stored)?.block !== undefined;
}

/** Weights with scales: 16 or 32 elements along k share one. */
const SCALED = {
  mxfp4: weights4,
  fp4x16: weightsNv4,
  ...INTEGERS,
  fp8x32: weights8,
} as const;

/** Whether elements along k share a scale. */
export function hasScales(
  stored: typeof STORED[number],
): stored is keyof typeof SCALED | Blocks {
  return isInBlocks(stored) || Object.hasOwn(SCALED, stored);
}

/** Shape and operands of a product. */
export interface Product {
  readonly stored: typeof STORED[number];
  readonly k: number;
  /** Segments of k. */
  readonly segments: number;
  readonly columns: number;
  /** Rows of each expert; one count if rows are not grouped. */
  readonly counts: readonly number[];
  readonly grouped: boolean;
  /** Two right operands, whose results are multiplied. */
  readonly pair: boolean;
  /** Passes k as a dynamic length. */
  readonly late: boolean;
  readonly seed: number;
  /** Shard of k: rank `rank` of `of`. Default: all of k. */
  readonly part?: { readonly of: number; readonly rank: number };
}

/** Returns the rank's rows of each group of rows. */
function rowsOfRank<T extends Words | Uint16Array>(
  words: T,
  product: Product,
): T {
  const { counts, part } = product;
  if (!part) return words;
  const each = words.length / counts.length / part.of;
  const local = counts.flatMap((_, group) => {
    const from = (group * part.of + part.rank) * each;
    return [...words.subarray(from, from + each)];
  });
  return new (words.constructor as new (local: number[]) => T)(local);
}

type Weights = Omit<StoredWeights, "words"> & { readonly words: Words };

/** Weights by product, shared by all tiles and the expected results. */
const cachedWeights = new WeakMap<Product, readonly Weights[]>();

/** Weights of each right operand. */
function weightsOf(product: Product): readonly Weights[] {
  const found = cachedWeights.get(product) ??
    namesOf(product).map((_, i) => makeWeights(product, product.seed + i));
  cachedWeights.set(product, found);
  return found;
}

function makeWeights(product: Product, seed: number): Weights {
  const { stored, k, columns, counts } = product;
  // Experts are stored one after another, as more rows.
  const size = [k * counts.length, columns] as const;
  if (isInBlocks(stored)) {
    const { part } = product;
    const sizes = { columns, k, experts: counts.length };
    const made = randomMatrices(stored, { ...sizes, seed, part });
    return {
      ...made,
      rowStride: packingOf(stored)!.inWords ? columns : k / (part?.of ?? 1),
    };
  }
  if (hasScales(stored)) {
    const { words, scales, ...rest } = SCALED[stored](
      size,
      seed,
      counts.length,
    );
    const local = rowsOfRank(scales!, product);
    return {
      ...rest,
      words: rowsOfRank(words, product),
      scales: local instanceof Float32Array ? local : inWords(
        local instanceof Uint16Array ? new Uint8Array(local.buffer) : local,
      ),
    };
  }
  if (stored !== "f32") {
    const { words, ...rest } = weights16(size, stored, seed);
    return { ...rest, words: rowsOfRank(words, product) };
  }
  const values = randoms(size[0] * columns, seed);
  if (columns % 2 === 1) {
    const words = rowsOfRank(values, product);
    return { words, rowStride: columns, values };
  }
  // As in published weights: rows are padded to whole vectors.
  const rowStride = Math.ceil(columns / 4) * 4;
  const words = new Float32Array(size[0] * rowStride);
  for (const [i, value] of values.entries()) {
    words[Math.floor(i / columns) * rowStride + i % columns] = value;
  }
  return { words: rowsOfRank(words, product), rowStride, values };
}

function namesOf({ pair }: Product): string[] {
  return pair ? ["v", "w"] : ["w"];
}

/**
 * Returns the options of a product with a tile. In half of the products, teams of lanes sum different blocks of k for
 * any row count. In another half, adjacent elements of the left operand are loaded at once.
 */
export function optionsOf(product: Product, tile: MatmulTile): MatmulOptions {
  const { columns, grouped, late, part } = product;
  const k = product.k / (part?.of ?? 1);
  const segments = product.segments / (part?.of ?? 1);
  const names = namesOf(product);
  const weights = weightsOf(product);
  const type = product.stored === "f32" ? "f32" : "u32";
  const inside = isInBlocks(product.stored) &&
      !packingOf(product.stored)!.inWords
    ? "k"
    : "n";
  const o: MatmulOptions = {
    name: "matmul",
    ...late ? { k: lengthAt(1) } : { k, segments },
    columns,
    tile: inside === "k"
      ? tileOfWeights(tile, [{ stored: product.stored, inside }], {
        grouped,
        k,
        columns,
        maxLanes: tile.lanes,
      })
      : tile,
    bindings: [
      reads("x"),
      ...names.map((name) => reads(name, type)),
      ...names.map((name) =>
        reads(`scales_${name}`, product.stored === "fp8x32" ? "f32" : "u32")
      ),
      ...names.map((name) => reads(`factors_${name}`)),
      reads("tiles", "u32"),
      reads("rowOf", "u32"),
      writes("y"),
    ],
    weights: names.map((binding, i) => ({
      binding,
      stored: product.stored,
      inside,
      rowStride: weights[i]!.rowStride,
      ...isInBlocks(product.stored)
        ? { scales: binding }
        : weights[i]!.scales
        ? { scales: `scales_${binding}` }
        : {},
      ...product.stored === "uint4x32_f16_zero"
        ? { offsets: `scales_${binding}` }
        : {},
      ...weights[i]!.factors ? { factors: `factors_${binding}` } : {},
    })),
    rows: lengthAt(0),
    // As much memory as most devices with so many lanes have.
    ...tile.lanes > 256 ? { maxWords: 8192 } : {},
    ...grouped ? { grouped: { tiles: "tiles" } } : {},
    leftRow: (row) => mul(load("rowOf", row, "u32"), u32(k)),
    left: (base, at) => load("x", add(base, at)),
    ...product.seed % 4 > 1 && !late && k / segments % ADJACENT === 0
      ? { leftAdjacent: adjacentInX }
      : {},
    epilogue: (at, sums) => [
      store(
        "y",
        add(mul(at.row, u32(columns)), at.column),
        sums.length > 1 ? mul(sums[0]!, sums[1]!) : sums[0]!,
      ),
    ],
  };
  return { ...o, inTeams: product.seed % 2 === 0 && sumsInTeams(o) };
}

/** Computes a product with a tile. Elements after the results keep their old values. */
export async function resultOf(
  target: KernelTarget,
  product: Product,
  tile: MatmulTile,
): Promise<Words> {
  const o = optionsOf(product, tile);
  return await runProduct(target, product, {
    kernel: matmul(o),
    height: matmulShape(o).rows,
    grid: (size) => matmulGrid(o, size),
  });
}

/** The epsilon of norms. */
export const EPSILON = 1e-5;

/** Options of a product of one row whose kernel computes the norm of the row, with gains. */
export function normedOptionsOf(
  product: Product,
  tile: MatmulTile,
): MatmulOptions {
  const o = optionsOf(product, tile);
  return {
    ...o,
    // Some devices have eight.
    bindings: [
      ...o.bindings.filter(({ name }) => !/tiles|factors/.test(name)),
      reads("gain"),
    ],
    left: (base, at) =>
      mul(load("gain", at), mul(o.left(base, at), local("norm_scale", "f32"))),
    leftAdjacent: o.leftAdjacent && ((base, at, names) => {
      const [xs, gains] = ["x", "gain"].map((of) =>
        names.map((name) => `${of}_of_${name}`)
      ) as [string[], string[]];
      return [
        ...adjacentIn("x")(base, at, xs),
        ...adjacentIn("gain")(u32(0), at, gains),
        ...names.map((name, n) =>
          let_(
            name,
            mul(
              local(gains[n]!, "f32"),
              mul(local(xs[n]!, "f32"), local("norm_scale", "f32")),
            ),
          )
        ),
      ];
    }),
    norm: {
      length: product.k,
      epsilon: EPSILON,
      load: o.left,
      ...o.leftAdjacent ? { adjacent: o.leftAdjacent } : {},
    },
  };
}

/** Computes the product of one row and the norm of it: in one kernel, or in two. */
export async function resultsOfNormed(
  target: KernelTarget,
  product: Product,
  tile: MatmulTile,
): Promise<{ readonly one: Words; readonly two: Words }> {
  const { k, seed } = product;
  const o = normedOptionsOf(product, tile);
  const x = leftOf(product);
  const gain = randoms(k, seed + 5);
  const at = {
    height: 1,
    grid: (size: number) => matmulGrid(o, size),
  };
  const one = await runProduct(target, product, {
    ...at,
    kernel: matmul(o),
    others: { gain },
  });
  const norm = rmsNorm({
    name: "norm",
    rows: u32(1),
    length: k,
    epsilon: EPSILON,
    bindings: [reads("x"), reads("gain"), writes("y")],
    load: (_, i) => load("x", i),
    epilogue: (_, i, value) => [
      store("y", i, mul(load("gain", i), value(i))),
    ],
  });
  const { y } = await target.run(
    norm,
    { x, gain, y: new Float32Array(k) },
    workgroups(rowsGrid(1)),
  );
  const two = await runProduct(target, product, {
    ...at,
    kernel: matmul(optionsOf(product, tile)),
    others: { x: y! },
  });
  return { one, two };
}

/** Computes a product with hardware matrices. `height`: rows of listed tiles. */
export async function resultOfMatrices(
  target: KernelTarget,
  product: Product,
  height: number,
): Promise<Words> {
  const { columns, grouped, k, pair } = product;
  const options = optionsOf(product, DEFAULT_TILE);
  const { shape } = matrixTiling(
    { weights: pair ? 2 : 1, k, columns },
    { height, memory: 32 * 1024 },
  )!;
  return await runProduct(target, product, {
    kernel: matmulMatrices(options, shape),
    height,
    grid: (size) => matrixGrid(shape, { grouped, width: columns, size }),
  });
}

async function runProduct(
  target: KernelTarget,
  product: Product,
  { kernel, height, grid, others = {} }: {
    readonly kernel: Kernel;
    readonly height: number;
    readonly grid: (rowsOrTiles: number) => Grid;
    /** Operands instead of those of the product, or beyond them. */
    readonly others?: { readonly [binding: string]: Words };
  },
): Promise<Words> {
  const { k, columns, counts, grouped } = product;
  const rows = counts.reduce((a, b) => a + b, 0);
  const names = namesOf(product);
  const weights = weightsOf(product);
  const tiles: number[] = [];
  let first = 0;
  for (const [expert, count] of counts.entries()) {
    for (let row = 0; row < count; row += height) {
      tiles.push(expert, first + row, Math.min(height, count - row));
    }
    first += count;
  }
  const bound = grouped ? tiles.length / 3 + 1 : rows;
  const { y } = await target.run(kernel, {
    x: leftOf(product),
    // Rows are read in reverse order.
    rowOf: Uint32Array.from({ length: rows }, (_, row) => rows - 1 - row),
    ...Object.fromEntries(names.flatMap((name, i) => [
      [name, weights[i]!.words],
      [`scales_${name}`, weights[i]!.scales ?? new Uint32Array(1)],
      [`factors_${name}`, weights[i]!.factors ?? new Float32Array(1)],
    ])),
    tiles: Uint32Array.of(tiles.length / 3, ...tiles),
    lengths: Uint32Array.of(rows, k),
    y: new Float32Array(rows * columns + 5).fill(7),
    ...others,
  }, workgroups(grid(bound)));
  return y!;
}

function leftOf({ k, counts, seed, part }: Product): Float32Array {
  const x = randoms(counts.reduce((a, b) => a + b, 0) * k, seed + 9);
  if (!part) return x;
  const each = k / part.of;
  return x.filter((_, at) => Math.floor(at % k / each) === part.rank);
}

/** Reference result. `of`: applied to every factor. `rowOf`: multiplies a row by a matrix. */
export function expected(
  product: Product,
  of = (factor: number) => factor,
  rowOf = blockedRow as (
    ...of: Parameters<typeof blockedRow>
  ) => ArrayLike<number>,
): number[] {
  const { k, columns, counts } = product;
  const x = leftOf(product).map(of);
  const weights = weightsOf(product).map(({ values }) => values.map(of));
  const rows = counts.reduce((a, b) => a + b, 0);
  const expertOf = counts.flatMap((n, e) => new Array<number>(n).fill(e));
  const results = expertOf.flatMap((expert, row) => {
    const left = x.subarray((rows - 1 - row) * k, (rows - row) * k);
    const sums = weights.map((w) =>
      rowOf(left, w.subarray(expert * k * columns), columns)
    );
    return Array.from(
      { length: columns },
      (_, c) => sums.reduce((product, of) => product * of[c]!, 1),
    );
  });
  return [...results, 7, 7, 7, 7, 7];
}
