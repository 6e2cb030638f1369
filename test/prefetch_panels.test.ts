// Matrix forms load the words of a panel during the products of the previous one.

import t from "tap";
import { bindings, kernelOf, local, wgsl } from "../compiler/kernels/kernel.ts";
import { u } from "../compiler/kernels/matmul/left.ts";
import { matrixTile } from "../compiler/kernels/matrix_tile.ts";
import { MATRIX_LANES } from "../compiler/tuning/matrices.ts";
import { add, mul, store, u32 } from "../spec/kernel/build.ts";
import { statement } from "../spec/kernel/matrices.ts";
import type { Kernel, Stmt } from "../spec/kernel/tree.ts";
import { walkStatements } from "../spec/kernel/walk.ts";
import { range } from "../spec/range.ts";
import { sum } from "../spec/sum.ts";
import { contracted } from "./helpers/contracted.ts";
import { interpretKernel } from "./helpers/interpret_kernel.ts";

const ROWS = 16, COLUMNS = 128, DEPTH = 16;

/**
 * `y [16, 128] = (2 * left [16, k] + bias [k] + bytes [k]) * right [k, 128]`, where `bytes` are those of `bias`. A lane
 * loads two vectors of `right` per panel, and the word of `left` before each of two products.
 */
function product(k: number): Kernel {
  const body = matrixTile({ rows: ROWS, columns: COLUMNS, depth: DEPTH }, {
    k,
    products: [{ name: "sum", right: "right_tile" }],
    load: wgsl`
      let left_k = k_start + lane % 16;
      let left_to = lane / 16 * 24 + lane % 16;
      let bias_of = f32(bias[left_k]) + f32(bytesAt(bias, left_k) & 255u);
      left_tile[left_to] = left[lane / 16 * ${k} + left_k] + bias_of;
      let vector = (k_start + lane / 16) * 32 + lane % 16 * 2;
      let (a, b, c, d) = vec4(right)[vector];
      let (e, f, g, h) = vec4(right)[vector + 1];
      let to = lane / 16 * 136 + lane % 16 * 8;
      right_tile[to] = a;
      right_tile[to + 1] = b;
      right_tile[to + 2] = c;
      right_tile[to + 3] = d;
      right_tile[to + 4] = e;
      right_tile[to + 5] = f;
      right_tile[to + 6] = g;
      right_tile[to + 7] = h;
      ${[
      statement({
        op: "multiply",
        left: "left_tile",
        depth: DEPTH,
        leftStride: 24,
        rightStride: 136,
        products: [{ name: "sum", right: "right_tile" }],
      }),
    ]}
      workgroupBarrier();
      left_tile[left_to] = left[lane / 16 * ${k} + left_k];`,
    column: { from: u32(0), end: COLUMNS },
    values: ["result"],
    body: [
      store(
        "y",
        add(mul(u("row"), u32(COLUMNS)), u("column")),
        local("result", "f32"),
      ),
    ],
  });
  return kernelOf({
    name: "panels",
    workgroupSize: MATRIX_LANES,
    bindings: bindings({ left: "f32", bias: "u32", right: "f32" }, {
      y: "f32",
    }),
    body: wgsl`
      let tile_first = 0u;
      let end = ${ROWS}u;
      ${body}`,
  });
}

/** The words that a kernel keeps from a panel to the next. */
function keptWords({ matrixForm }: Kernel): number {
  const names = new Set<string>();
  walkStatements(matrixForm as readonly Stmt[], (s) => {
    if (s.op === "set" && s.name.startsWith("ahead")) names.add(s.name);
  });
  return names.size;
}

for (const panels of [1, 2, 3]) {
  t.test(`the words of ${panels} panels are multiplied`, (t) => {
    const k = panels * DEPTH;
    const kernel = product(k);
    t.equal(keptWords(kernel), panels === 1 ? 0 : 11);
    // Integers, so that sums are exact; all differ between panels.
    const left = (row: number, i: number) => row + 3 * i;
    const right = (i: number, column: number) => column % 7 + i * i % 101;
    const bias = Uint32Array.from({ length: k }, (_, i) => i * 3 % 50);
    const bytes = new Uint8Array(bias.buffer);
    const words = (values: Float32Array) => new Uint32Array(values.buffer);
    const y = new Float32Array(ROWS * COLUMNS);
    const matrix = (
      rows: number,
      columns: number,
      at: (row: number, column: number) => number,
    ) =>
      Float32Array.from(
        { length: rows * columns },
        (_, n) => at(Math.floor(n / columns), n % columns),
      );
    interpretKernel(kernel, {
      left: words(matrix(ROWS, k, left)),
      bias,
      right: words(matrix(k, COLUMNS, right)),
      y: words(y),
    }, [1, 1, 1]);
    const wanted = matrix(
      ROWS,
      COLUMNS,
      (row, column) =>
        sum(
          range(k).map((i) =>
            (2 * left(row, i) + bias[i]! + bytes[i]!) * right(i, column)
          ),
        ),
    );
    t.strictSame(y, wanted);
    t.end();
  });
}

t.test("contractions load all elements of a panel ahead", (t) => {
  const { kernel } = contracted({ rows: 70, batches: 3, k: 64, columns: 72 });
  // A lane loads 4 of 64 x 16 elements of each operand.
  t.equal(keptWords(kernel), 8);
  t.end();
});
