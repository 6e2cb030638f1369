// Prefetch shapes: measured on launches, saved, and without effect on bits.
// needs: cpu
// rotates with: runtime/native/, runtime/vector/tiled_loop.ts, engine/tune/tuning.ts
import { closeSync, mkdtempSync, openSync, rmSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import process from "node:process";
import { setImmediate } from "node:timers/promises";
import t from "tap";
import { matmul } from "../compiler/kernels/mod.ts";
import { matmulGrid, type MatmulTile } from "../compiler/tuning/mod.ts";
import { TUNING } from "../engine/tune/tuning.ts";
import { SHAPES } from "../runtime/native/along.ts";
import { loadNative } from "../runtime/native/library.ts";
import {
  NativePool,
  printKernel,
  whyNotNative,
} from "../runtime/native/mod.ts";
import { LAUNCH_STRUCT } from "../runtime/native/records.ts";
import {
  ROUNDS,
  savedShapes,
  saveShapes,
  SHAPE_CALLS_IN_C,
  SHAPES_IN_C,
  TRIES,
} from "../runtime/native/shapes.ts";
import { tileWidths } from "../runtime/vector/tiled_loop.ts";
import { add, load, mul, store, u32 } from "../spec/kernel/build.ts";
import { evaluateSize } from "../spec/size.ts";
import { skipUnasked } from "./helpers/needs.ts";

const skip = skipUnasked("cpu") || (await whyNotNative() ?? false);

/** Dimensions of a weight of 2 MiB, more than the minimum of a measurement. */
const K = 1024, COLUMNS = 1 << 10;

/** Max launches until shapes are saved: measurements on a busy machine are discarded. */
const MAX_LAUNCHES = 400;

/** Rows times weights with k innermost. */
function product(
  k: number,
  stored: "bf16" | "f32" = "bf16",
  tile: MatmulTile = TUNING.native.matmul!,
) {
  const shape = {
    name: "matmul",
    k,
    segments: 8,
    columns: COLUMNS,
    tile,
    bindings: [
      { name: "w", type: stored === "f32" ? "f32" : "u32", access: "read" },
      { name: "x", type: "f32", access: "read" },
      { name: "rows", type: "u32", access: "read" },
      { name: "y", type: "f32", access: "write" },
    ],
    weights: [{ binding: "w", stored, rowStride: k, inside: "k" }],
    rows: load("rows", u32(0), "u32"),
  } as const;
  const tree = matmul({
    ...shape,
    leftRow: (row) => mul(row, u32(k)),
    left: (base, at) => load("x", add(base, at)),
    epilogue: ({ row, column }, [sum]) => [
      store("y", add(mul(row, u32(COLUMNS)), column), sum!),
    ],
  });
  return { shape, tree };
}

t.test("one row of many blocks is one stream", (t) => {
  const streams = (stored: "bf16" | "f32", tile: MatmulTile, lanes: number) => {
    const { tree } = product(2048, stored, tile);
    const { text } = printKernel(tree, { lanes })[0]!;
    const apart = stored === "f32" ? 128 : 64;
    return [...text.matchAll(/(turn\d+)\((?:.*), (\d+), \d+, 0, &along_one\)/g)]
      .flatMap(([, turn, bytes]) => Number(bytes) === apart ? [turn] : []);
  };
  const sixteen = TUNING.native.matmul!;
  const eight: MatmulTile = { ...sixteen, vector: 8 };
  t.same(streams("bf16", sixteen, 16), ["turn16"]);
  t.same(streams("f32", sixteen, 16), ["turn16"]);
  t.same(streams("bf16", eight, 8), ["turn4"]);
  t.same(streams("f32", eight, 8), [], "f32 is read in one stream per lane");
  t.end();
});

t.test(
  "shapes are measured once, saved, and do not change bits",
  { skip },
  async (t) => {
    const folder = mkdtempSync(path.join(tmpdir(), "switchyard-shapes-"));
    const home = process.env["XDG_CACHE_HOME"];
    process.env["XDG_CACHE_HOME"] = folder;
    const file = openSync(path.join(folder, "weights"), "w+");
    t.teardown(() => {
      closeSync(file);
      rmSync(folder, { recursive: true });
      if (home === undefined) delete process.env["XDG_CACHE_HOME"];
      else process.env["XDG_CACHE_HOME"] = home;
    });
    const bytes = 2 * K * COLUMNS;
    // bf16 numbers of both signs, from 2^-7 to 2.
    const part = Uint16Array.from(
      { length: 1 << 19 },
      (_, i) => 0x3c00 + (Math.imul(i, 2654435761) >>> 22) | i << 15,
    );
    for (let at = 0; at < bytes; at += part.byteLength) writeSync(file, part);
    const { shape, tree } = product(K);
    /**
     * Launches products of one and of eight rows and returns the bytes of both. Repeats them until a condition holds,
     * at most `MAX_LAUNCHES` times.
     */
    const products = async (until: () => Promise<boolean>) => {
      const pool = await NativePool.open(1);
      try {
        const [kernel] = await pool.prepare([{ tree }]);
        const results: Buffer[] = [];
        const weights = pool.heap.map([
          { name: "weights", descriptor: file, offset: 0, bytes },
        ])!;
        for (let launches = 0; launches < MAX_LAUNCHES; launches++) {
          for (const rows of [1, 8]) {
            const x = pool.heap.allocate(4 * rows * K, "x");
            const count = pool.heap.allocate(4, "rows");
            const y = pool.heap.allocate(4 * rows * COLUMNS, "y");
            const values = Float32Array.from(
              { length: rows * K },
              (_, i) => Math.fround(Math.sin(i)),
            );
            pool.write(x.address, new Uint8Array(values.buffer));
            pool.write(
              count.address,
              new Uint8Array(Uint32Array.of(rows).buffer),
            );
            const grid = matmulGrid(shape, rows).map((size) =>
              evaluateSize(size, () => NaN)
            ) as [number, number, number];
            const ranges = [weights, x, count, y].map(({ address, size }) => ({
              address,
              bytes: size,
            }));
            pool.launch(kernel!, pool.bind(ranges), grid);
            await pool.settle();
            if (launches === 0) {
              results.push(Buffer.from(pool.heap.view(y.address, y.size)));
            }
            for (const span of [x, count, y]) pool.heap.release(span);
          }
          if (await until()) break;
          await setImmediate();
        }
        return Buffer.concat(results);
      } finally {
        await pool.close();
      }
    };
    const { objects } = await loadNative();
    // Shapes for one row and for several are measured separately.
    const isUnknown = (shape: number) =>
      (shape & 255) > SHAPES.length ||
      shape >> 8 > SHAPES.length;
    const first = await products(async () => {
      const [, , , shape] = await savedShapes(objects);
      return shape !== undefined && !isUnknown(shape);
    });
    // Words per load, row stride, and offset of the mapping within a cache line.
    const kind = [tileWidths(objects.compiler.lanes)[0]!, 2 * K, 0];
    const found = await savedShapes(objects);
    if (found.length > 0) t.same([...found.subarray(0, 3)], kind);
    for (const i of SHAPES.keys()) {
      const saved = Uint32Array.of(...kind, i | i << 8);
      await saveShapes(objects, saved);
      const bytes = await products(() => Promise.resolve(true));
      t.ok(bytes.equals(first), `shape ${i} has the bits of the first`);
      t.same(await savedShapes(objects), saved, "it is not measured again");
    }
    // Two processes, each with shapes that the other has not measured.
    await saveShapes(objects, Uint32Array.of(8, 64, 0, 1 | 255 << 8));
    await saveShapes(objects, Uint32Array.of(8, 64, 0, 255 | 2 << 8));
    const merged = await savedShapes(objects);
    t.same([...merged.subarray(0, 4)], [8, 64, 0, 1 | 2 << 8]);
    t.equal(merged.length, 8, "other kinds stay");
  },
);

/** The measurement code, with times given by the test. */
const MEASUREMENT = `
#define _GNU_SOURCE
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
${LAUNCH_STRUCT}${SHAPES_IN_C}
struct pool { struct shapes shapes; };
${SHAPE_CALLS_IN_C}
struct pool *test_pool(void) {
  struct pool *p = calloc(1, sizeof *p);
  p->shapes.count = 1;
  p->shapes.list[0] = (struct shape){ 8, 64, 0, UNKNOWN * 257 };
  return p;
}
void test_time(struct pool *p, uint32_t used, uint32_t shape, double time) { add_time(&p->shapes, 0, used, shape, time); }
uint32_t test_shape(struct pool *p) { return p->shapes.list[0].shape; }
`;

t.test("measurements with a large spread are repeated", { skip }, async (t) => {
  const { objects } = await loadNative();
  const { load } = await import("koffi");
  const library = load(await objects.library(MEASUREMENT));
  const open = library.func("void *test_pool()");
  const add = library.func(
    "void test_time(void *pool, uint32_t used, uint32_t shape, double time)",
  );
  const shapeOf = library.func("uint32_t test_shape(void *pool)");
  const news = library.func("uint32_t switchyard_shape_news(void *pool)");
  const copy = library.func("uint32_t switchyard_shapes(void *pool, void *to)");
  /** Adds times of all shapes for one row or several. The last shape is the fastest. */
  const measure = (
    pool: unknown,
    { used, spread }: { readonly used: 1 | 2; readonly spread: number },
  ) => {
    for (let round = 0; round < ROUNDS; round++) {
      for (const shape of SHAPES.keys()) {
        const time = shape === SHAPES.length - 1 ? 80 : 100;
        add(pool, used, shape, time * (1 + spread * round));
      }
    }
  };
  const last = SHAPES.length - 1;
  const pool: unknown = open();
  measure(pool, { used: 1, spread: 0.5 });
  t.equal(shapeOf(pool), 0xffff, "a large spread selects no shape");
  measure(pool, { used: 1, spread: 0.01 });
  t.equal(shapeOf(pool), 0xff00 | last, "others do");
  t.equal(news(pool), 1);
  for (let n = 1; n <= TRIES; n++) {
    t.equal(shapeOf(pool), 0xff00 | last, `measurement ${n} of several rows`);
    measure(pool, { used: 2, spread: 0.5 });
  }
  t.equal(shapeOf(pool), last | last << 8, "the last selects a shape");
  t.equal(news(pool), 0, "which is not saved");
  const saved = new Uint32Array(4);
  t.equal(copy(pool, saved), 1);
  t.same([...saved], [8, 64, 0, 0xff00 | last]);
});
