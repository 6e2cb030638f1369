// Kernels of one row load operands before the sums that use them.

import t from "tap";
import { matmul } from "../compiler/kernels/mod.ts";
import { bindings } from "../compiler/kernels/kernel.ts";
import { matmulCombined } from "../compiler/kernels/matmul/combine.ts";
import { add, load, mul, store, u32 } from "../spec/kernel/build.ts";
import type { Stmt } from "../spec/kernel/tree.ts";
import { walkStatements } from "../spec/kernel/walk.ts";
import { normedOptionsOf, type Product } from "./helpers/products.ts";

t.test("gains of a norm are loaded before its barriers", (t) => {
  const product: Product = {
    stored: "fp8x32",
    segments: 1,
    k: 64,
    columns: 8,
    counts: [1],
    grouped: false,
    pair: false,
    late: false,
    // Of this seed, adjacent elements of a row are loaded at once.
    seed: 2,
  };
  const { body } = matmul(normedOptionsOf(product, {
    rows: 1,
    columns: 2,
    lanes: 32,
    split: 16,
    right: "vector",
  }));
  const order: string[] = [];
  walkStatements(body, (s) => {
    if (s.op === "barrier") order.push("barrier");
    if (s.op === "loads" && s.binding === "gain") order.push("gain");
  });
  t.ok(order.indexOf("gain") >= 0);
  t.ok(order.lastIndexOf("gain") < order.indexOf("barrier"));
  t.end();
});

/** Whether a kernel over the choices of one token loads a block of k in a loop. */
function loadsInLoop(stored: "fp8x32" | "int4x32", columns: number): boolean {
  const k = 64;
  const { body } = matmulCombined({
    name: "combined",
    k,
    segments: 1,
    columns: 32,
    tile: { rows: 1, columns, lanes: 32, split: 4, right: "vector" },
    rows: u32(1),
    grouped: { tiles: "" },
    weights: [{ binding: "w", stored, scales: "scales", rowStride: 32 }],
    bindings: bindings(
      { x: "f32", w: "u32", scales: "f32", index: "u32" },
      { y: "f32" },
    ),
    choices: 2,
    left: (base, i) => load("x", add(base, i)),
    leftRow: (row) => mul(row, u32(k)),
    expert: (choice) => load("index", choice, "u32"),
    result: (_, sum, use) => use(sum),
    epilogue: (column, value) => [store("y", column, value)],
  });
  let found = false;
  walkStatements(body, (s: Stmt) => {
    if (s.op === "for" && s.name === "part") found = true;
  });
  return found;
}

t.test("a lane loads at most 16 words of a block at once", (t) => {
  t.equal(loadsInLoop("int4x32", 2), false, "8 words");
  t.equal(loadsInLoop("int4x32", 4), false, "16 words");
  t.equal(loadsInLoop("fp8x32", 2), false, "16 words");
  t.equal(loadsInLoop("fp8x32", 4), true, "32 words");
  t.end();
});
