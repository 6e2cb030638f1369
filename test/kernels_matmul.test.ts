/** Matmul variants: each is correct and has the bits of the plain tile, which is used for unequal blocks. */
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
import { printWgsl } from "../spec/kernel/wgsl/wgsl.ts";
import {
  expected,
  hasScales,
  normedOptionsOf,
  optionsOf,
  type Product,
  resultOf,
  resultsOfNormed,
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

/** Variants of each kind, some with sizes that do not divide evenly. */
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
  // Workgroup memory has no space for the sums of its teams.
  { rows: 1, columns: 64, lanes: 128, split: 2 },
];

/** Row counts for which a tile is empty, has one row, is almost full, full, or one row over. */
function countsOf(tile: MatmulTile): fc.Arbitrary<number> {
  const { rows, split = 1 } = tile;
  const height = rows * split;
  const edges = [0, 1, rows, rows + 1, height - 1, height, height + 1];
  return fc.constantFrom(...edges);
}

/** Products with equal blocks; `ragged`: with unequal blocks, as if k is known only at run time. */
function productsOf(
  tile: MatmulTile,
  { ragged }: { readonly ragged: boolean },
): fc.Arbitrary<Product> {
  const count = countsOf(tile);
  return fc.record({
    // Blocks of weights with scales are complete.
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
    // Segments of complete blocks, shorter than a block, or neither. Those of weights with scales are complete.
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

/** Checks a result. Errors are relative to the sum of absolute terms, since terms may cancel. */
function checkResult(t: Test, product: Product, found: Words): void {
  const size = Math.max(...expected(product, Math.abs));
  close(
    t,
    found.map((value) => value / size) as Words,
    expected(product).map((value) => value / size),
  );
}

/** Returns the plain tile of a variant. */
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
      // Each run takes every second variant; a software GPU, every fifth test.
      if (!target.software && !isInTurn(i, 2)) {
        t.comment(`Not run in this rotation. ${repeatWith()}`);
        return;
      }
      await holds(productsOf(tile, { ragged: false }), async (product) => {
        const found = await resultOf(target, product, tile);
        const plain = await resultOf(target, product, DEFAULT_TILE);
        t.same(bits(found), bits(plain));
        checkResult(t, product, found);
      }, 4);
    },
  );
  // Such tiles are only for devices that keep the order of products in all code.
  if (tile.right === "workgroup") continue;
  if (sharesAnyBlocks(tile)) {
    testKernels(
      `matmul() by ${tileName(tile)} has those bits with unequal blocks`,
      async (t, target) => {
        if (!target.software && !isInTurn(i + 1, 2)) {
          t.comment(`Not run in this rotation. ${repeatWith()}`);
          return;
        }
        await holds(productsOf(tile, { ragged: true }), async (product) => {
          const found = await resultOf(target, product, tile);
          const plain = await resultOf(target, product, DEFAULT_TILE);
          t.same(bits(found), bits(plain));
          checkResult(t, product, found);
        }, 4);
      },
    );
    continue;
  }
  testKernels(
    `matmul() by ${tileName(tile)} is the plain tile with unequal blocks`,
    async (t, target) => {
      await holds(productsOf(tile, { ragged: true }), async (product) => {
        const plain = plainOf(tile, product);
        t.equal(
          printWgsl(matmul(optionsOf(product, tile))),
          printWgsl(matmul(optionsOf(product, plain))),
        );
        // Another test runs the same kernel text, which a software GPU compiles for seconds.
        if (target.software) return;
        checkResult(t, product, await resultOf(target, product, tile));
      }, 2);
    },
  );
}

/** Columns of a lane whose words of a block fit into registers; those of fp8 also with the gains of a norm. */
const EARLY = { f32: 1, bf16: 2, fp8x32: 2 } as const;

testKernels(
  "matmul() with the norm of its row has the bits of two kernels",
  async (t, target) => {
    const cases = fc.record({
      stored: fc.constantFrom("f32", "bf16", "fp8x32", "int4x32_bf16"),
      blocks: fc.integer({ min: 1, max: 9 }),
      segments: fc.constantFrom(1, 2),
      columns: fc.constantFrom(4, 8, 24),
      lanes: fc.constantFrom(32, 64),
      seed: fc.nat(1000),
    });
    await holds(cases, async ({ blocks, lanes, ...of }) => {
      const { stored, segments } = of;
      const product: Product = {
        ...of,
        k: segments * blocks * 32,
        counts: [1],
        grouped: false,
        pair: false,
        late: false,
      };
      const columns = stored === "int4x32_bf16" ? 4 : EARLY[stored];
      const tile: MatmulTile = {
        rows: 1,
        columns,
        lanes,
        split: lanes / 2,
        right: "vector",
      };
      const { one, two } = await resultsOfNormed(target, product, tile);
      t.same(bits(one), bits(two));
      // The only block of a team is loaded before the barriers of the norm, unless its scales need decoding.
      const o = normedOptionsOf(product, tile);
      const text = printWgsl(matmul(o));
      const before = text.slice(0, text.indexOf("workgroupBarrier"));
      const teams = lanes / Math.min(2, Math.ceil(of.columns / columns));
      t.equal(
        before.includes("let k = "),
        segments * blocks <= teams &&
          (stored === "fp8x32" || stored !== "int4x32_bf16" && !o.leftAdjacent),
      );
    });
  },
);
