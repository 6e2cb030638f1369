// Shapes of prefetches: measured on launches, saved, and of no effect on bits.
// needs: cpu
import { closeSync, mkdtempSync, openSync, rmSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import process from "node:process";
import { setImmediate } from "node:timers/promises";
import t from "tap";
import { matmul } from "../compiler/kernels/mod.ts";
import { matmulGrid } from "../compiler/tuning/mod.ts";
import { TUNING } from "../engine/tuning.ts";
import { SHAPES } from "../runtime/native/along.ts";
import { loadNative } from "../runtime/native/library.ts";
import { NativePool, whyNotNative } from "../runtime/native/mod.ts";
import { savedShapes, saveShapes } from "../runtime/native/shapes.ts";
import { add, load, mul, store, u32 } from "../spec/kernel/build.ts";
import { evaluateSize } from "../spec/size.ts";
import { skipUnasked } from "./helpers/needs.ts";

const skip = skipUnasked("cpu") || (await whyNotNative() ?? false);

/** Elements of a weight: 2 MiB, more than the minimum of a measurement. */
const K = 1024, COLUMNS = 1 << 10;

/** Maximum launches until shapes are measured. */
const MAX_LAUNCHES = 2000;

t.test(
  "shapes are measured once, saved, and keep bits",
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
    const shape = {
      name: "matmul",
      k: K,
      segments: 8,
      columns: COLUMNS,
      tile: TUNING.native.matmul!,
      bindings: [
        { name: "w", type: "u32", access: "read" },
        { name: "x", type: "f32", access: "read" },
        { name: "rows", type: "u32", access: "read" },
        { name: "y", type: "f32", access: "write" },
      ],
      weights: [{ binding: "w", stored: "bf16", rowStride: K, inside: "k" }],
      rows: load("rows", u32(0), "u32"),
    } as const;
    const tree = matmul({
      ...shape,
      leftRow: (row) => mul(row, u32(K)),
      left: (base, k) => load("x", add(base, k)),
      epilogue: ({ row, column }, [sum]) => [
        store("y", add(mul(row, u32(COLUMNS)), column), sum!),
      ],
    });
    /** Launches products of one and of eight rows. Returns the bytes of both, and repeats them until a condition holds. */
    const products = async (until: () => Promise<boolean>) => {
      const pool = await NativePool.open(1);
      try {
        const [kernel] = await pool.prepare([{ tree }]);
        const results: Buffer[] = [];
        const weights = pool.heap.map([
          { name: "weights", descriptor: file, offset: 0, bytes },
        ])!;
        for (let launches = 0;; launches++) {
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
          if (await until()) return Buffer.concat(results);
          if (launches > MAX_LAUNCHES) throw new Error("nothing was measured");
          await setImmediate();
        }
      } finally {
        await pool.close();
      }
    };
    const { objects } = await loadNative();
    // Shapes of one and of several rows are measured separately.
    const isUnknown = (shape: number) =>
      (shape & 255) > SHAPES.length ||
      shape >> 8 > SHAPES.length;
    const first = await products(async () => {
      const [, , , shape] = await savedShapes(objects);
      return shape !== undefined && !isUnknown(shape);
    });
    const [words, apart, align] = await savedShapes(objects);
    t.equal(apart, 2 * K, "the row stride");
    t.equal(align, 0, "a mapping starts at a page");
    for (const i of SHAPES.keys()) {
      const saved = Uint32Array.of(words!, apart!, align!, i | i << 8);
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
