/** Products with quantized activations: the bits of their definition on every device. */
// needs: cpu, gpu
// rotates with: compiler/kernels/matmul/bytes, compiler/kernels/quantize.ts

import t from "tap";
import type { KernelTarget } from "./helpers/run_kernel.ts";
import { testKernels } from "./helpers/run_kernel.ts";
import type { MatmulTile } from "../compiler/tuning/tile.ts";
import { NativePool, whyNotNative } from "../runtime/native/mod.ts";
import { q8PartsOf } from "../spec/weights/activations.ts";
import { BLOCKS } from "../spec/weights/blocks.ts";
import {
  BLOCK_DTYPES,
  type Packing,
  PACKINGS,
  WORDS_DTYPES,
} from "../spec/weights/packed.ts";
import type { Binding } from "../spec/kernel/tree.ts";
import { skipUnasked } from "./helpers/needs.ts";
import {
  type Case,
  GUARDED,
  KINDS,
  productError,
  type Run,
  SHAPES,
  SIGNED,
  STORED,
  titleOf,
  UNSIGNED,
  type Variant,
} from "./helpers/q8_products.ts";
import { runNative } from "./helpers/run_native.ts";
import { INNER_SEED, inTurn, isInTurn, repeatWith } from "./helpers/seed.ts";

/** Runs kernels on a device; returns their written buffers. */
function on(target: KernelTarget): Run {
  return async (kernel, buffers, groups) => {
    const typed = Object.fromEntries(
      kernel.bindings.map(({ name, type }: Binding) => {
        const words = buffers[name]!;
        return [
          name,
          type === "f32"
            ? new Float32Array(words.buffer)
            : type === "i32"
            ? new Int32Array(words.buffer)
            : words,
        ];
      }),
    );
    const found = await target.run(kernel, typed, groups);
    return Object.fromEntries(
      Object.entries(found).map((
        [name, words],
      ) => [name, new Uint32Array(words.slice().buffer)]),
    );
  };
}

/** Each encoding with one shape and kind of activations, and two encodings with all shapes. */
const CASES: readonly Case[] = STORED.flatMap((stored, i) => {
  const all = stored === "int8x32" || stored === "uint4x32";
  return SHAPES.filter((_, at) => all || at === i % SHAPES.length)
    .map((shape, at) => ({ stored, shape, kind: (i + at) % KINDS.length }));
});

/**
 * All block types. Partial sums may end within a block. The small blocks of a row are more than the lanes, but not a
 * multiple of them.
 */
const BLOCK_CASES: readonly Case[] = BLOCK_DTYPES.flatMap((stored, i) => {
  const { elements } = BLOCKS[stored];
  const isLarge = elements === 256;
  return [
    { rows: 1, k: isLarge ? 768 : 576, columns: 40 },
    { rows: i % 2 === 0 ? 7 : 9, k: isLarge ? 512 : 64, columns: 17 },
  ]
    .map((shape, at) => ({
      stored,
      shape,
      kind: (i + at) % KINDS.length,
    }));
});

/** The same for rearranged blocks. */
const WORDS_CASES: readonly Case[] = WORDS_DTYPES.flatMap((stored, i) =>
  [{ rows: 1, k: 768, columns: 40 }, { rows: 9, k: 512, columns: 17 }]
    .map((shape, at) => ({ stored, shape, kind: (i + at) % KINDS.length }))
);

/** Scales of one byte, loaded 16 at a time along k: a multiple of 16 in a column, or one or two more. */
const BYTE_SCALES: readonly Case[] = [1056, 576, 512].map((k, i) => ({
  stored: "mxfp4",
  shape: { rows: 1 + i % 2, k, columns: 40 },
  kind: i,
}));

/** Partial sums of one term, which is -0 for some columns: drivers may add it to 0 without changing its sign. */
const OF_ONE_TERM: Case = {
  stored: "int8x32",
  shape: { rows: 9, k: 64, columns: 17 },
  kind: 3,
};

testKernels(
  "products of bytes match the definition",
  async (t, target) => {
    const isCpu = target.name === "cpu";
    // Drivers compile slowly.
    const cases = CASES.filter(({ stored }) =>
      isCpu || /32|int8$/.test(stored)
    );
    const some = [OF_ONE_TERM, ...cases.slice(0, isCpu ? Infinity : 8)];
    for (const [i, one] of some.entries()) {
      const variants = isCpu ? [GUARDED, SIGNED] : [GUARDED];
      for (
        const variant of variants.filter((_, at) =>
          isInTurn(i + at, variants.length)
        )
      ) {
        t.equal(
          await productError(on(target), variant, one),
          undefined,
          `${titleOf(one)}, ${variant.arithmetic}`,
        );
      }
    }
    const blocks = isCpu
      ? [...BLOCK_CASES, ...WORDS_CASES, ...BYTE_SCALES]
      : inTurn(WORDS_CASES, 4);
    for (const [i, one] of blocks.entries()) {
      const { inWords }: Packing = PACKINGS[one.stored];
      const variant = inWords
        ? isCpu && i % 3 === 1 ? SIGNED : GUARDED
        : { ...GUARDED, inside: "k" as const };
      const result = await productError(on(target), variant, one);
      t.equal(result, undefined, titleOf(one));
    }
  },
);

const skip = skipUnasked("cpu") || (await whyNotNative() ?? false);

t.test(
  "products of bytes in C, with vectors of every length",
  { skip },
  async (t) => {
    const pool = await NativePool.open(1);
    const run: Run = async (kernel, buffers, groups) => {
      const bindings = Object.fromEntries(
        Object.entries(buffers).map(([name, words]) => [name, words.slice()]),
      );
      await runNative(pool, kernel, { bindings, groups });
      return bindings;
    };
    // C compilation takes most of the time, more for higher tiles. Each block type runs one of its shapes.
    const low: MatmulTile = { ...UNSIGNED.tile, rows: 2 };
    const cases = [
      ...inTurn(CASES, 3),
      ...BLOCK_CASES.filter((_, i) => isInTurn(i + (i >> 1), 2)),
    ];
    const hold = async (
      one: Case,
      tile: MatmulTile,
      arithmetic: Variant["arithmetic"] = "unsigned",
    ) =>
      t.equal(
        await productError(run, { ...UNSIGNED, tile, arithmetic }, one),
        undefined,
        `${
          titleOf(one)
        }, ${tile.rows} rows, ${tile.lanes} lanes (${repeatWith()})`,
      );
    for (const [i, one] of cases.entries()) {
      const tile = (INNER_SEED + i) % 4 === 0 ? UNSIGNED.tile : low;
      // As on AVX2, or as on AVX-512.
      await (isInTurn(i, 2)
        ? hold(one, { ...tile, vector: 8 }, "pairs")
        : hold(one, tile));
    }
    // A vector has the parts of a column, or of several.
    for (const [i, stored] of (["q4_k", "q5_k"] as const).entries()) {
      const k = [2048, 1024, 512, 256][(INNER_SEED + i) % 4]!;
      const shape = { rows: 1, k, columns: 40 };
      const one = { stored, shape, kind: (INNER_SEED + i) % KINDS.length };
      await hold(one, { ...low, vector: 8 }, "pairs");
    }
    for (const one of inTurn(BYTE_SCALES, 2)) {
      const vector = 8;
      await (isInTurn(one.kind, 2)
        ? hold(one, { ...low, vector }, "pairs")
        : hold(one, low));
    }
    const some = cases.filter(({ stored }) =>
      /^(uint4x32|q4_k|q8_0)$/.test(stored)
    );
    for (const [i, one] of some.entries()) {
      const lanes = [2, 4, 8][(INNER_SEED + i) % 3]!;
      await hold(one, { ...low, lanes, split: 1 });
    }
    await pool.close();
  },
);

t.test("partial sums sharded over ranks equal those of one rank", (t) => {
  for (const blocks of [1, 2, 4, 12, 44, 64, 90]) {
    for (const ranks of [1, 2, 4, 8]) {
      if (blocks % ranks !== 0) continue;
      t.equal(q8PartsOf(blocks / ranks, ranks) * ranks, q8PartsOf(blocks));
    }
  }
  t.end();
});
