/** Kernels that spec/kernels.md explains line by line, by its names for them. */

import {
  assign,
  attention,
  lengthAt,
  matmul,
  type MatmulOptions,
  reads,
  reduce,
  writes,
} from "../../compiler/kernels/mod.ts";
import { add, load, local, mul, store, u32 } from "../../spec/kernel/build.ts";
import type { Kernel } from "../../spec/kernel/tree.ts";

const ATTENTION = {
  name: "attention",
  heads: 4,
  kvHeads: 2,
  dim: 32,
  context: 1024,
  scale: 0.125,
  tokens: lengthAt(0),
};

const MATMUL: MatmulOptions = {
  name: "matmul",
  k: 64,
  columns: 128,
  rows: u32(0),
  grouped: { tiles: "tiles" },
  bindings: [reads("tiles", "u32"), reads("x"), reads("w"), writes("y")],
  weights: [{ binding: "w", stored: "f32", rowStride: 128 }],
  tile: { rows: 2, columns: 1, lanes: 32 },
  leftRow: (row) => mul(row, u32(64)),
  left: (base, k) => load("x", add(base, k)),
  epilogue: ({ row, column }, [sum]) => [
    store("y", add(mul(row, u32(128)), column), sum ?? local("sum", "f32")),
  ],
};

export const SHOWN: { readonly [name: string]: Kernel } = {
  assign: assign({
    name: "assign",
    experts: 8,
    k: 2,
    tokens: lengthAt(0),
    dropping: true,
    ordered: false,
  }),
  decode: attention(ATTENTION),
  prefill: attention({ ...ATTENTION, kvHeads: 4, queries: 2 }),
  "grouped matmul": matmul(MATMUL),
  "few rows": matmul({
    ...MATMUL,
    bindings: [
      ...MATMUL.bindings.filter(({ name }) => name !== "w"),
      reads("w", "u32"),
    ],
    weights: [{ binding: "w", stored: "bf16", rowStride: 128 }],
    tile: { rows: 1, columns: 2, lanes: 64, split: 2 },
  }),
  segments: reduce({
    name: "contract",
    kind: "sum",
    count: lengthAt(0),
    length: 256,
    segments: 4,
    bindings: [reads("x"), reads("w"), writes("y")],
    terms: (i, k) => [load("x", add(mul(i, u32(256)), k)), load("w", k)],
    epilogue: (i, sum) => [store("y", i, sum)],
  }),
};
