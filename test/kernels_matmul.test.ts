/** Variants of the matmul: each is right and has the bits of the plain tile, which it is where blocks are not equally long. */
// needs: cpu, gpu

import fc from "fast-check";
import type { Test } from "tap";
import { matmul } from "../compiler/kernels/mod.ts";
import {
  DEFAULT_TILE,
  type MatmulTile,
  tileName,
} from "../compiler/tuning/mod.ts";
import { sharesAnyBlocks } from "../compiler/tuning/tile.ts";
import { printWgsl } from "../spec/kernel/wgsl.ts";
import {
  expected,
  hasScales,
  optionsOf,
  type Product,
  resultOf,
  STORED,
} from "./helpers/products.ts";
import {
  bits,
  close,
  holds,
  testKernels,
  type Words,
} from "./helpers/run_kernel.ts";
import { isInTurn, repeatWith } from "./helpers/seed.ts";

/** One of each kind, and some that do not come out even. */
const VARIANTS: readonly MatmulTile[] = [
  { rows: 4, columns: 4, lanes: 32, left: "workgroup" },
  { rows: 2, columns: 2, lanes: 32, split: 4 },
  { rows: 1, columns: 4, lanes: 32, split: 8, right: "vector" },
  { rows: 2, columns: 2, lanes: 16, split: 2, left: "workgroup" },
  { rows: 3, columns: 2, lanes: 12, split: 3 },
  { rows: 4, columns: 4, lanes: 8, right: "vector" },
  { rows: 3, columns: 2, lanes: 32, split: 4, right: "workgroup" },
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

/** Numbers of rows at which a tile is empty, has one, is almost full, and has one too many. */
function countsOf(tile: MatmulTile): fc.Arbitrary<number> {
  const { rows, split = 1 } = tile;
  const height = rows * split;
  const edges = [0, 1, rows, rows + 1, height - 1, height, height + 1];
  return fc.constantFrom(...edges);
}

/** Products of equal blocks; ragged: of others, as where k is known only when the kernel runs. */
function productsOf(
  tile: MatmulTile,
  { ragged }: { readonly ragged: boolean },
): fc.Arbitrary<Product> {
  const count = countsOf(tile);
  return fc.record({
    // Blocks of weights with scales are whole.
    stored: fc.constantFrom(...STORED.filter((s) => !ragged || !hasScales(s))),
    blocks: fc.integer({ min: 1, max: 6 }),
    segments: fc.constantFrom(1, 2, 8),
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
    const { stored, grouped, late, segments } = rest;
    // Segments of whole blocks, shorter than one, or neither. Those of weights with scales are whole.
    const short = segments > 1 && !hasScales(stored) && less % 2 === 1;
    const length = ragged
      ? 32 * (segments > 1 ? blocks : blocks - 1) + less
      : short
      ? less
      : 32 * blocks;
    return {
      ...rest,
      k: segments * length,
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

for (const [i, tile] of VARIANTS.entries()) {
  testKernels(
    `matmul() by ${tileName(tile)} has the bits of the plain tile`,
    async (t, target) => {
      // A software GPU takes half a second to compile a kernel: in each run of the tests every fourth variant.
      if (target.software && !isInTurn(i, 4)) {
        t.comment(`Not run in this rotation. ${repeatWith()}`);
        return;
      }
      await holds(productsOf(tile, { ragged: false }), async (product) => {
        const found = await resultOf(target, product, tile);
        const plain = await resultOf(target, product, DEFAULT_TILE);
        t.same(bits(found), bits(plain));
        isRight(t, product, found);
      }, 4);
    },
  );
  // Only for devices that keep the order of products in every code.
  if (tile.right === "workgroup") continue;
  if (sharesAnyBlocks(tile)) {
    testKernels(
      `matmul() by ${tileName(tile)} has those bits where blocks are not whole`,
      async (t, target) => {
        await holds(productsOf(tile, { ragged: true }), async (product) => {
          const found = await resultOf(target, product, tile);
          const plain = await resultOf(target, product, DEFAULT_TILE);
          t.same(bits(found), bits(plain));
          isRight(t, product, found);
        }, 4);
      },
    );
    continue;
  }
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
        // A software GPU takes seconds to compile what another test has run by its text.
        if (target.software) return;
        isRight(t, product, await resultOf(target, product, tile));
      }, 2);
    },
  );
}
