/** Matrix, elementwise and row kernels, against plain code. */
// needs: cpu, gpu

import fc from "fast-check";
import t from "tap";
import {
  elementwise,
  elementwiseGrid,
  lengthAt,
  matmul,
  type MatmulOptions,
  reads,
  reduce,
  regroup,
  regroupGrid,
  rmsNorm,
  rowsGrid,
  softmax,
  writes,
} from "../compiler/kernels/mod.ts";
import {
  matmulGrid,
  matmulShape,
  type MatmulTile,
} from "../compiler/tuning/mod.ts";
import {
  add,
  call,
  div,
  f32,
  load,
  mul,
  rem,
  store,
  u32,
} from "../spec/kernel/build.ts";
import type { FileDType } from "../spec/dtype.ts";
import type { Expr } from "../spec/kernel/tree.ts";
import { blockedDot, softmaxOf } from "./helpers/kernel_reference.ts";
import { inWords } from "./helpers/halves.ts";
import { weights16, weights4 } from "./helpers/stored_weights.ts";
import {
  bits,
  close,
  holds,
  rowMajor,
  rowsOf,
  testKernels,
  workgroups,
} from "./helpers/run_kernel.ts";
import { randoms } from "./helpers/random_values.ts";

const TILES: readonly MatmulTile[] = [
  { rows: 4, columns: 4, lanes: 32 },
  { rows: 1, columns: 2, lanes: 8 },
  { rows: 3, columns: 2, lanes: 16 },
  { rows: 8, columns: 4, lanes: 8, right: "vector", code: "small" },
];

function dense(k: number, columns: number, tile: MatmulTile): MatmulOptions {
  return {
    name: "matmul",
    k,
    columns,
    tile,
    bindings: [reads("x"), reads("w"), writes("y")],
    weights: [{ binding: "w", stored: "f32", rowStride: columns }],
    rows: lengthAt(0),
    leftRow: (row) => mul(row, u32(k)),
    left: (base, k) => load("x", add(base, k)),
    epilogue: (at, [sum]) => [
      store("y", add(mul(at.row, u32(columns)), at.column), sum!),
    ],
  };
}

testKernels(
  "matmul() is correct and has the same bits with every tile",
  async (t, target) => {
    const sizes = fc.record({
      rows: fc.nat(9),
      k: fc.oneof(
        fc.constantFrom(1, 32, 34, 64, 66),
        fc.integer({ min: 1, max: 70 }),
      ),
      columns: fc.integer({ min: 1, max: 67 }),
      seed: fc.nat(1000),
    });
    await holds(sizes, async ({ rows, k, columns, seed }) => {
      const x = randoms(rows * k, seed);
      const w = randoms(k * columns, seed + 1);
      const y = new Float32Array(rows * columns);
      const lengths = Uint32Array.of(rows);
      const expected = rowsOf(x, k).flatMap((row) =>
        Array.from(
          { length: columns },
          (_, c) => blockedDot(k, (i) => row[i]! * w[i * columns + c]!),
        )
      );
      const results = [];
      for (const tile of TILES) {
        const o = dense(k, columns, tile);
        const grid = workgroups(matmulGrid(o, rows));
        const { y: result } = await target.run(
          matmul(o),
          { x, w, y, lengths },
          grid,
        );
        close(t, result!, expected);
        results.push(bits(result!));
      }
      // The fallback sums in the same order, so it has the same bits.
      const cell = (i: Expr) => ({
        row: div(i, u32(columns)),
        column: rem(i, u32(columns)),
      });
      const kernel = reduce({
        name: "contract",
        kind: "sum",
        count: mul(lengthAt(0), u32(columns)),
        length: k,
        bindings: [reads("x"), reads("w"), writes("y")],
        terms: (i, at) => [
          load("x", add(mul(cell(i).row, u32(k)), at)),
          load("w", add(mul(at, u32(columns)), cell(i).column)),
        ],
        epilogue: (i, sum) => [store("y", i, sum)],
      });
      const grid = workgroups(elementwiseGrid(rows * columns));
      const { y: result } = await target.run(
        kernel,
        { x, w, y, lengths },
        grid,
      );
      for (const other of results) t.same(other, bits(result!));
    });
  },
);

testKernels(
  "matmul() unpacks weights of every stored dtype to exact values",
  async (t, target) => {
    const cases = fc.record({
      stored: fc.constantFrom("f16", "bf16", "mxfp4"),
      rows: fc.integer({ min: 1, max: 5 }),
      blocks: fc.integer({ min: 1, max: 3 }),
      columns: fc.integer({ min: 1, max: 20 }),
      tile: fc.constantFrom(...TILES),
      seed: fc.nat(1000),
    });
    await holds(cases, async ({ stored, rows, blocks, columns, ...how }) => {
      const { tile, seed } = how;
      // Blocks of MXFP4 are complete; other encodings may end within one.
      const k = stored === "mxfp4" ? 32 * blocks : 32 * blocks - seed % 31;
      const { words, scales, rowStride, values } = stored === "mxfp4"
        ? weights4([k, columns], seed)
        : weights16([k, columns], stored as "f16" | "bf16", seed);
      const x = randoms(rows * k, seed + 1);
      const [y, lengths] = [new Float32Array(rows * columns), [rows]];
      const shared = { x, y, lengths: Uint32Array.from(lengths) };
      const plain = dense(k, columns, tile);
      const o: MatmulOptions = {
        ...plain,
        bindings: [
          ...[reads("x"), reads("w", "u32")],
          ...scales ? [reads("s", "u32")] : [],
          writes("y"),
        ],
        weights: [{
          binding: "w",
          stored: stored as FileDType,
          rowStride,
          ...scales ? { scales: "s" } : {},
        }],
      };
      const grid = workgroups(matmulGrid(o, rows));
      const wanted = await target.run(
        matmul(plain),
        { ...shared, w: values },
        grid,
      );
      const found = await target.run(
        matmul(o),
        { ...shared, w: words, ...scales ? { s: inWords(scales) } : {} },
        grid,
      );
      t.same(bits(found["y"]!), bits(wanted["y"]!));
    });
  },
);

testKernels(
  "matmul() multiplies grouped rows with their experts' weights",
  async (t, target) => {
    const [k, columns, experts] = [40, 6, 3];
    // Different loops handle tiles of one row, of a quarter of the rows, and of more.
    const tiles: MatmulTile[] = [
      { rows: 2, columns: 2, lanes: 8 },
      { rows: 8, columns: 2, lanes: 4 },
    ];
    const cases = fc.record({
      counts: fc.array(fc.nat(9), { minLength: experts, maxLength: experts }),
      tile: fc.constantFrom(...tiles),
    });
    await holds(cases, async ({ counts, tile }) => {
      const rows = counts.reduce((a, b) => a + b, 0);
      const x = randoms(rows * k, 3);
      const gate = randoms(experts * k * columns, 4);
      const up = randoms(experts * k * columns, 5);
      const words = (n: number) => new Uint32Array(n);
      const options: MatmulOptions = {
        ...dense(k, columns, tile),
        grouped: { tiles: "tiles" },
        weights: ["gate", "up"].map((binding) => ({
          binding,
          stored: "f32",
          rowStride: columns,
        })),
        bindings: [
          reads("x"),
          reads("gate"),
          reads("up"),
          reads("tiles", "u32"),
          reads("rowOf", "u32"),
          writes("y"),
        ],
        leftRow: (row) => mul(load("rowOf", row, "u32"), u32(k)),
        epilogue: (at, [gate, up]) => [
          store(
            "y",
            add(mul(at.row, u32(columns)), at.column),
            mul(gate!, up!),
          ),
        ],
      };
      const lists = await target.run(
        regroup({
          name: "regroup",
          splits: [0, experts],
          tileRows: matmulShape(options).rows,
        }),
        {
          counts: Uint32Array.from(counts),
          tiles: words(1 + 3 * (rows + experts)),
          rowOf: words(rows),
          expertOf: words(rows),
          rowCount: words(1),
        },
        workgroups(regroupGrid(rows)),
      );
      const { y } = await target.run(matmul(options), {
        x,
        gate,
        up,
        tiles: lists["tiles"]!,
        rowOf: lists["rowOf"]!,
        y: new Float32Array(rows * columns),
      }, workgroups(matmulGrid(options, rows)));
      const expertOf = counts.flatMap((n, e) => new Array<number>(n).fill(e));
      const expected = rowsOf(x, k).flatMap((row, r) =>
        Array.from({ length: columns }, (_, c) => {
          const dot = (w: Float32Array) =>
            blockedDot(
              k,
              (i) => row[i]! * w[(expertOf[r]! * k + i) * columns + c]!,
            );
          return dot(gate) * dot(up);
        })
      );
      close(t, y!, expected);
    });
  },
);

testKernels("elementwise() runs every index once", async (t, target) => {
  const kernel = elementwise({
    name: "double",
    count: lengthAt(1),
    bindings: [reads("x"), writes("y")],
    body: (i) => [store("y", i, mul(f32(2), load("x", i)))],
  });
  const counts = fc.oneof(fc.constantFrom(0, 64, 65), fc.nat(199));
  await holds(counts, async (n) => {
    const x = randoms(200, n);
    const lengths = Uint32Array.of(7, n);
    const y = new Float32Array(200);
    const result = await target.run(
      kernel,
      { x, y, lengths },
      workgroups(elementwiseGrid(n)),
    );
    t.same([...result["y"]!], [...x].map((v, i) => i < n ? 2 * v : 0));
  });
});

testKernels("rmsNorm() and softmax() of rows", async (t, target) => {
  const sizes = fc.record({
    rows: fc.nat(4),
    length: fc.oneof(
      fc.constantFrom(1, 32, 64),
      fc.integer({ min: 1, max: 130 }),
    ),
  });
  await holds(sizes, async ({ rows, length }) => {
    const x = randoms(rows * length, length);
    const buffers = {
      x,
      gain: randoms(length, 9),
      y: new Float32Array(x.length),
      lengths: Uint32Array.of(rows),
    };
    const shared = {
      rows: lengthAt(0),
      length,
      bindings: [reads("x"), reads("gain"), writes("y")],
      load: rowMajor("x", length),
    };
    const at = (row: Expr, i: Expr) => add(mul(row, u32(length)), i);
    const norm = rmsNorm({
      ...shared,
      name: "norm",
      epsilon: 1e-5,
      epilogue: (
        row,
        i,
        v,
      ) => [store("y", at(row, i), mul(load("gain", i), v(i)))],
    });
    const grid = workgroups(rowsGrid(rows));
    const normed = await target.run(norm, buffers, grid);
    const expected = rowsOf(x, length).flatMap((row) => {
      const mean = row.reduce((sum, v) => sum + v * v, 0) / length;
      return row.map((v, i) => buffers.gain[i]! * v / Math.sqrt(mean + 1e-5));
    });
    close(t, normed["y"]!, expected);
    const soft = softmax({
      ...shared,
      name: "softmax",
      epilogue: (row, i, v) => [store("y", at(row, i), v(i))],
    });
    const scores = await target.run(soft, buffers, grid);
    close(t, scores["y"]!, rowsOf(x, length).flatMap(softmaxOf));
  }, 4);
});

testKernels(
  "reduce() sums, averages and finds the maximum",
  async (t, target) => {
    const sizes = fc.record({
      rows: fc.nat(6),
      length: fc.oneof(fc.constantFrom(1, 32), fc.integer({ min: 1, max: 90 })),
      seed: fc.nat(1000),
    });
    await holds(sizes, async ({ rows, length, seed }) => {
      const x = randoms(rows * length, seed);
      const sums = rowsOf(x, length).map((row) =>
        row.reduce((a, b) => a + b, 0)
      );
      const expected = {
        sum: sums,
        mean: sums.map((sum) => sum / length),
        max: rowsOf(x, length).map((row) => Math.max(...row)),
      };
      for (const kind of ["sum", "mean", "max"] as const) {
        const kernel = reduce({
          name: kind,
          kind,
          count: lengthAt(1),
          length: lengthAt(0),
          bindings: [reads("x"), writes("y")],
          terms: (i, k) => [load("x", add(mul(i, lengthAt(0)), k))],
          epilogue: (i, value) => [store("y", i, value)],
        });
        const buffers = {
          x,
          y: new Float32Array(rows),
          lengths: Uint32Array.of(length, rows),
        };
        const { y } = await target.run(
          kernel,
          buffers,
          workgroups(elementwiseGrid(rows)),
        );
        close(t, y!, expected[kind]);
      }
    });
  },
);

testKernels(
  "roundF16 rounds to nearest even, keeps subnormals and NaN, overflows to infinity",
  async (t, target) => {
    const cases = [
      [1 + 2 ** -11, 1],
      [1 + 3 * 2 ** -11, 1 + 2 ** -9],
      [-1.0004, -1],
      [2 ** -24, 2 ** -24],
      [2 ** -25, 0],
      [3 * 2 ** -25, 2 ** -23],
      [65504, 65504],
      [65519, 65504],
      [65520, Infinity],
      [-1e30, -Infinity],
      [NaN, NaN],
    ] as const;
    const kernel = elementwise({
      name: "round_halves",
      count: u32(cases.length),
      bindings: [reads("x"), writes("y")],
      body: (i) => [store("y", i, call("roundF16", load("x", i)))],
    });
    const buffers = {
      x: Float32Array.from(cases, ([x]) => x),
      y: new Float32Array(cases.length),
    };
    const { y } = await target.run(kernel, buffers, [1, 1, 1]);
    t.same([...y!], cases.map(([, y]) => y));
  },
);

t.test("matmulShape() gives idle lanes more rows", (t) => {
  const tile = { rows: 4, columns: 4, lanes: 32 };
  t.same(matmulShape({ k: 64, columns: 8, tile }), { rows: 64, columns: 8 });
  t.same(matmulShape({ k: 9, columns: 999, tile }), { rows: 4, columns: 128 });
  t.end();
});
