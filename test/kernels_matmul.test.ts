/** Variants of the matmul: each is right and has the bits of the plain tile, which it is where a block is not whole. */
// needs: cpu, gpu

import fc from "fast-check";
import type { Test } from "tap";
import {
  DEFAULT_TILE,
  lengthAt,
  matmul,
  matmulGrid,
  type MatmulOptions,
  matmulShape,
  type MatmulTile,
  reads,
  tileName,
  writes,
} from "../compiler/kernels/mod.ts";
import { add, load, mul, store, u32 } from "../spec/kernel/build.ts";
import { printWgsl } from "../spec/kernel/wgsl.ts";
import { blockedDot } from "./helpers/kernel_reference.ts";
import {
  bits,
  close,
  holds,
  type KernelTarget,
  randoms,
  testKernels,
  type Words,
  workgroups,
} from "./helpers/run_kernel.ts";
import {
  type StoredWeights,
  weights16,
  weights4,
} from "./helpers/stored_weights.ts";

/** One of each kind, and some that do not come out even. */
const VARIANTS: readonly MatmulTile[] = [
  { rows: 4, columns: 4, lanes: 32, left: "workgroup" },
  { rows: 2, columns: 2, lanes: 32, split: 4 },
  { rows: 1, columns: 4, lanes: 32, split: 8 },
  { rows: 2, columns: 2, lanes: 16, split: 2, left: "workgroup" },
  { rows: 3, columns: 2, lanes: 12, split: 3 },
  { rows: 4, columns: 4, lanes: 8, right: "vector" },
  {
    rows: 2,
    columns: 8,
    lanes: 8,
    split: 2,
    left: "workgroup",
    right: "vector",
  },
  { rows: 3, columns: 2, lanes: 20, split: 2, left: "workgroup" },
  // Memory has no room for the sums of its teams.
  { rows: 1, columns: 64, lanes: 128, split: 2 },
];

const STORED = ["f32", "bf16", "f16", "mxfp4"] as const;

/** A product: what is multiplied, and how. */
interface Product {
  readonly stored: typeof STORED[number];
  readonly k: number;
  readonly columns: number;
  /** Rows of each expert; one number where rows are not grouped. */
  readonly counts: readonly number[];
  readonly grouped: boolean;
  /** Two right operands, whose results are multiplied. */
  readonly pair: boolean;
  /** The kernel is told k when it runs. */
  readonly late: boolean;
  readonly seed: number;
}

function weightsOf(
  { stored, k, columns, counts }: Product,
  seed: number,
): Omit<StoredWeights, "words"> & { readonly words: Words } {
  // Experts lie one after another, as more rows.
  const size = [k * counts.length, columns] as const;
  if (stored === "mxfp4") return weights4(size, seed);
  if (stored !== "f32") return weights16(size, stored, seed);
  const values = randoms(size[0] * columns, seed);
  if (columns % 2 === 1) return { words: values, rowStride: columns, values };
  // As published weights are laid out: rows of whole vectors.
  const rowStride = Math.ceil(columns / 4) * 4;
  const words = new Float32Array(size[0] * rowStride);
  for (const [i, value] of values.entries()) {
    words[Math.floor(i / columns) * rowStride + i % columns] = value;
  }
  return { words, rowStride, values };
}

function namesOf({ pair }: Product): string[] {
  return pair ? ["v", "w"] : ["w"];
}

/** A product with a tile. */
function optionsOf(product: Product, tile: MatmulTile): MatmulOptions {
  const { k, columns, grouped, late, seed } = product;
  const names = namesOf(product);
  const weights = names.map((_, i) => weightsOf(product, seed + i));
  const type = product.stored === "f32" ? "f32" : "u32";
  return {
    name: "matmul",
    k: late ? lengthAt(1) : k,
    columns,
    tile,
    bindings: [
      reads("x"),
      ...names.map((name) => reads(name, type)),
      ...names.map((name) => reads(`scales.${name}`, "u32")),
      reads("tiles", "u32"),
      reads("rowOf", "u32"),
      writes("y"),
    ],
    weights: names.map((binding, i) => ({
      ...{ binding, stored: product.stored },
      rowStride: weights[i]!.rowStride,
      ...weights[i]!.scales ? { scales: `scales.${binding}` } : {},
    })),
    rows: lengthAt(0),
    ...grouped ? { grouped: { tiles: "tiles" } } : {},
    leftRow: (row) => mul(load("rowOf", row, "u32"), u32(k)),
    left: (base, at) => load("x", add(base, at)),
    epilogue: (at, sums) => [
      store(
        "y",
        add(mul(at.row, u32(columns)), at.column),
        sums.length > 1 ? mul(sums[0]!, sums[1]!) : sums[0]!,
      ),
    ],
  };
}

/** A product as it was computed with a tile: the bytes behind the results have their old values. */
async function resultOf(
  target: KernelTarget,
  product: Product,
  tile: MatmulTile,
): Promise<Words> {
  const { k, columns, counts, grouped, seed } = product;
  const rows = counts.reduce((a, b) => a + b, 0);
  const names = namesOf(product);
  const weights = names.map((_, i) => weightsOf(product, seed + i));
  const o = optionsOf(product, tile);
  const height = matmulShape(o).rows;
  const tiles: number[] = [];
  let first = 0;
  for (const [expert, count] of counts.entries()) {
    for (let row = 0; row < count; row += height) {
      tiles.push(expert, first + row, Math.min(height, count - row));
    }
    first += count;
  }
  const bound = grouped ? tiles.length / 3 + 1 : rows;
  const { y } = await target.run(matmul(o), {
    x: leftOf(product),
    // The rows are taken in reverse.
    rowOf: Uint32Array.from({ length: rows }, (_, row) => rows - 1 - row),
    ...Object.fromEntries(names.flatMap((name, i) => [
      [name, weights[i]!.words],
      [`scales.${name}`, weights[i]!.scales ?? new Uint32Array(1)],
    ])),
    tiles: Uint32Array.of(tiles.length / 3, ...tiles),
    lengths: Uint32Array.of(rows, k),
    y: new Float32Array(rows * columns + 5).fill(7),
  }, workgroups(matmulGrid(o, bound)));
  return y!;
}

function leftOf({ k, counts, seed }: Product): Float32Array {
  return randoms(counts.reduce((a, b) => a + b, 0) * k, seed + 9);
}

/** The same by plain code; `of` is done to every factor. */
function expected(
  product: Product,
  of = (factor: number) => factor,
): number[] {
  const { k, columns, counts, pair, seed } = product;
  const x = leftOf(product);
  const weights = (pair ? [0, 1] : [0]).map((i) =>
    weightsOf(product, seed + i).values
  );
  const rows = counts.reduce((a, b) => a + b, 0);
  const expertOf = counts.flatMap((n, e) => new Array<number>(n).fill(e));
  const results = Array.from({ length: rows * columns }, (_, at) => {
    const [row, c] = [Math.floor(at / columns), at % columns];
    const left = (rows - 1 - row) * k;
    return weights.map((w) =>
      blockedDot(
        k,
        (i) =>
          of(x[left + i]!) * of(w[(expertOf[row]! * k + i) * columns + c]!),
      )
    ).reduce((a, b) => a * b);
  });
  return [...results, 7, 7, 7, 7, 7];
}

/** Numbers of rows at which a tile is empty, has one, is almost full, and has one too many. */
function countsOf(tile: MatmulTile): fc.Arbitrary<number> {
  const { rows, split = 1 } = tile;
  const height = rows * split;
  const edges = [0, 1, rows, rows + 1, height - 1, height, height + 1];
  return fc.constantFrom(...edges);
}

/** Products of whole blocks; ragged: with a last block that is not, or that is known only when the kernel runs. */
function productsOf(
  tile: MatmulTile,
  { ragged }: { readonly ragged: boolean },
): fc.Arbitrary<Product> {
  const count = countsOf(tile);
  return fc.record({
    // Blocks of MXFP4 are whole.
    stored: fc.constantFrom(...STORED.filter((s) => !ragged || s !== "mxfp4")),
    blocks: fc.integer({ min: 1, max: 6 }),
    less: fc.integer({ min: 1, max: 31 }),
    columns: fc.oneof(
      fc.constantFrom(1, 8, 64),
      fc.integer({ min: 1, max: 67 }),
    ),
    grouped: fc.boolean(),
    counts: fc.array(count, { minLength: 3, maxLength: 3 }),
    pair: fc.boolean(),
    late: fc.constantFrom(false, ragged),
    seed: fc.nat(1000),
  }).map(({ blocks, less, ...rest }): Product => {
    const { stored, grouped, late } = rest;
    return {
      ...rest,
      k: 32 * blocks - (ragged ? less : 0),
      counts: grouped ? rest.counts : rest.counts.slice(0, 1),
      late: late && !grouped && stored === "f32",
    };
  });
}

/** Terms may cancel out, so an error is measured by what was added. */
function isRight(t: Test, product: Product, found: Words): void {
  const size = Math.max(...expected(product, Math.abs));
  close(
    t,
    found.map((value) => value / size) as Words,
    expected(product).map((value) => value / size),
  );
}

/** The tile without what makes it a variant. */
function plainOf(
  { rows, columns, lanes, split = 1 }: MatmulTile,
  { grouped }: Product,
): MatmulTile {
  return { rows: grouped ? rows * split : rows, columns, lanes };
}

for (const tile of VARIANTS) {
  testKernels(
    `matmul() by ${tileName(tile)} has the bits of the plain tile`,
    async (t, target) => {
      await holds(productsOf(tile, { ragged: false }), async (product) => {
        const found = await resultOf(target, product, tile);
        const plain = await resultOf(target, product, DEFAULT_TILE);
        t.same(bits(found), bits(plain));
        isRight(t, product, found);
      }, 4);
    },
  );
  testKernels(
    `matmul() by ${
      tileName(tile)
    } is the plain tile where blocks are not whole`,
    async (t, target) => {
      await holds(productsOf(tile, { ragged: true }), async (product) => {
        const plain = plainOf(tile, product);
        t.equal(
          printWgsl(matmul(optionsOf(product, tile))),
          printWgsl(matmul(optionsOf(product, plain))),
        );
        isRight(t, product, await resultOf(target, product, tile));
      }, 2);
    },
  );
}
