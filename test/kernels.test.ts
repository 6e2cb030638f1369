/** Matrix kernels, elementwise kernels and rows against plain code. */

import fc from "fast-check";
import t from "tap";
import {
  contract,
  elementwise,
  elementwiseGrid,
  lengthAt,
  matmul,
  matmulGrid,
  type MatmulOptions,
  matmulShape,
  type MatmulTile,
  reads,
  reduce,
  regroup,
  regroupGrid,
  rmsNorm,
  rowMajor,
  rowsGrid,
  softmax,
  writes,
} from "../compiler/kernels/mod.ts";
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
import type { StoredDType } from "../spec/dtype.ts";
import type { Expr } from "../spec/kernel/tree.ts";
import { blockedDot, softmaxOf } from "./helpers/kernel_reference.ts";
import {
  bits,
  close,
  holds,
  randoms,
  rowsOf,
  testKernels,
  workgroups,
} from "./helpers/run_kernel.ts";

const TILES: readonly MatmulTile[] = [
  { rows: 4, columns: 4, lanes: 32 },
  { rows: 1, columns: 2, lanes: 8 },
  { rows: 3, columns: 2, lanes: 16 },
];

function dense(
  k: number,
  columns: number,
  tile: MatmulTile,
  stored: StoredDType = "f32",
): MatmulOptions {
  const packed = stored === "f16" || stored === "bf16";
  const rowStride = packed ? Math.ceil(columns / 4) * 4 : columns;
  return {
    name: "matmul",
    k,
    columns,
    tile,
    bindings: [
      reads("x"),
      reads("w", packed ? "u32" : "f32"),
      writes("y"),
    ],
    weights: [{ binding: "w", stored, rowStride }],
    rows: lengthAt(0),
    leftRow: (row) => mul(row, u32(k)),
    left: (base, k) => load("x", add(base, k)),
    epilogue: (at, [sum]) => [
      store("y", add(mul(at.row, u32(columns)), at.column), sum!),
    ],
  };
}

/** Rows of a matrix as 16-bit floats, padded to a multiple of four and packed two to a word. */
function packRows(
  rows: readonly (readonly number[])[],
  encode: (x: number) => number,
): Uint32Array {
  const halves = rows.flatMap((row) => [
    ...row.map(encode),
    ...new Array<number>((4 - row.length % 4) % 4).fill(0),
  ]);
  return new Uint32Array(Uint16Array.from(halves).buffer);
}

testKernels(
  "matmul() is right and has the same bits with every tile",
  async (t, target) => {
    const sizes = fc.record({
      rows: fc.constantFrom(0, 1, 5, 9),
      k: fc.constantFrom(1, 32, 45, 70),
      columns: fc.constantFrom(1, 3, 8, 67),
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
      // The fallback sums in the same order, so it has the same bits too.
      const cell = (i: Expr) => ({
        row: div(i, u32(columns)),
        column: rem(i, u32(columns)),
      });
      const kernel = contract({
        name: "contract",
        count: mul(lengthAt(0), u32(columns)),
        length: k,
        bindings: [reads("x"), reads("w"), writes("y")],
        left: (i, at) => load("x", add(mul(cell(i).row, u32(k)), at)),
        right: (i, at) => load("w", add(mul(at, u32(columns)), cell(i).column)),
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

/** The values of the sixteen codes of a four-bit float. */
const FP4 = [0, 0.5, 1, 1.5, 2, 3, 4, 6].flatMap((x, i, all) =>
  i < 7 ? [x] : [x, ...all.map((v) => -v)]
);

testKernels(
  "matmul() unpacks MXFP4 weights to exact values",
  async (t, target) => {
    const [rows, k, columns] = [3, 96, 7];
    const x = randoms(rows * k, 1);
    const lengths = Uint32Array.of(rows);
    // All codes and both ends of the exponents that published weights have.
    const code = (i: number, c: number) => (7 * i + 5 * c + i * c) % 16;
    const exponent = (block: number, c: number) => 118 + (3 * block + c) % 14;
    const words = new Uint32Array(k / 8 * columns);
    const scales = new Uint32Array(k / 32 * columns);
    const w = new Float32Array(k * columns);
    for (let i = 0; i < k; i++) {
      const block = Math.floor(i / 32);
      for (let c = 0; c < columns; c++) {
        words[Math.floor(i / 8) * columns + c]! |= code(i, c) << 4 * (i % 8);
        scales[block * columns + c] = exponent(block, c);
        w[i * columns + c] = FP4[code(i, c)]! * 2 ** (exponent(block, c) - 127);
      }
    }
    const y = new Float32Array(rows * columns);
    for (const tile of TILES) {
      const plain = dense(k, columns, tile);
      const o: MatmulOptions = {
        ...plain,
        bindings: [
          ...[reads("x"), reads("w", "u32"), reads("s", "u32")],
          writes("y"),
        ],
        weights: [{
          ...{ binding: "w", scales: "s", stored: "mxfp4", rowStride: columns },
        }],
      };
      const grid = workgroups(matmulGrid(o, rows));
      const wanted = await target.run(
        matmul(plain),
        { x, w, y, lengths },
        grid,
      );
      const found = await target.run(
        matmul(o),
        { ...{ x, y, lengths }, w: words, s: scales },
        grid,
      );
      t.same(bits(found["y"]!), bits(wanted["y"]!));
    }
  },
);

testKernels("matmul() unpacks 16-bit weights", async (t, target) => {
  const [rows, k, columns] = [3, 33, 7];
  const x = randoms(rows * k, 1);
  const lengths = Uint32Array.of(rows);
  // Multiples of 1/64 below 1 are exact in both formats.
  const w = randoms(k * columns, 2).map((v) => Math.round(v * 64) / 64);
  const f32Bits = (v: number) => new Uint32Array(Float32Array.of(v).buffer)[0]!;
  const encoders = {
    bf16: (v: number) => f32Bits(v) >>> 16,
    // Exact here: neither rounding nor subnormal halves.
    f16: (v: number) =>
      v === 0 ? 0 : (f32Bits(v) >>> 16 & 0x8000) |
        ((f32Bits(v) & 0x7fffffff) - 0x38000000 >>> 13),
  };
  const expected = rowsOf(x, k).flatMap((row) =>
    Array.from(
      { length: columns },
      (_, c) => blockedDot(k, (i) => row[i]! * w[i * columns + c]!),
    )
  );
  for (const stored of ["bf16", "f16"] as const) {
    const o = dense(k, columns, TILES[0]!, stored);
    const buffers = {
      x,
      w: packRows(rowsOf(w, columns), encoders[stored]),
      y: new Float32Array(rows * columns),
      lengths,
    };
    const { y } = await target.run(
      matmul(o),
      buffers,
      workgroups(matmulGrid(o, rows)),
    );
    close(t, y!, expected);
  }
});

testKernels(
  "matmul() multiplies grouped rows with their experts' weights",
  async (t, target) => {
    const [k, columns, experts] = [40, 6, 3];
    const tile = { rows: 2, columns: 2, lanes: 8 };
    const counts = fc.array(fc.nat(5), {
      minLength: experts,
      maxLength: experts,
    });
    await holds(counts, async (counts) => {
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
  await holds(fc.constantFrom(0, 1, 64, 65, 130), async (n) => {
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
    rows: fc.constantFrom(0, 1, 3),
    length: fc.constantFrom(1, 31, 64, 100),
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
      ) => [store("y", at(row, i), mul(load("gain", i), v))],
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
      epilogue: (row, i, v) => [store("y", at(row, i), v)],
    });
    const scores = await target.run(soft, buffers, grid);
    close(t, scores["y"]!, rowsOf(x, length).flatMap(softmaxOf));
  }, 4);
});

testKernels(
  "reduce() sums, averages and finds the largest",
  async (t, target) => {
    const [rows, length] = [5, 37];
    const x = randoms(rows * length, 11);
    const sums = rowsOf(x, length).map((row) => row.reduce((a, b) => a + b, 0));
    const expected = {
      sum: sums,
      mean: sums.map((sum) => sum / length),
      max: rowsOf(x, length).map((row) => Math.max(...row)),
    };
    for (const kind of ["sum", "mean", "max"] as const) {
      const kernel = reduce({
        name: kind,
        kind,
        count: u32(rows),
        length: lengthAt(0),
        bindings: [reads("x"), writes("y")],
        load: rowMajor("x", length),
        epilogue: (i, value) => [store("y", i, value)],
      });
      const buffers = {
        x,
        y: new Float32Array(rows),
        lengths: Uint32Array.of(length),
      };
      const { y } = await target.run(
        kernel,
        buffers,
        workgroups(elementwiseGrid(rows)),
      );
      close(t, y!, expected[kind]);
    }
  },
);

testKernels(
  "roundF16 rounds to nearest even, keeps subnormals, overflows to infinity",
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
  t.same(matmulShape({ columns: 8, tile }), { rows: 64, columns: 8 });
  t.same(matmulShape({ columns: 999, tile }), { rows: 4, columns: 128 });
  t.end();
});
