/** Contractions sharded over ranks: each rank sums complete segments; the tree sum has the bits of one rank. */
// needs: cpu, gpu
// rotates with: compiler/kernels/add_parts.ts, compiler/kernels/reduce, compiler/passes/lower/collectives/reduce_ranks.ts, spec/numerics.ts

import fc from "fast-check";
import t from "tap";
import { evaluate } from "../compiler/graph/evaluate/evaluate.ts";
import type { Graph } from "../compiler/graph/graph.ts";
import {
  addParts,
  elementwiseGrid,
  reads,
  reduce,
  writes,
} from "../compiler/kernels/mod.ts";
import { reduceInTeams } from "../compiler/kernels/reduce_teams.ts";
import { type MatmulTile, tileName } from "../compiler/tuning/mod.ts";
import { dot, model, trace } from "../compiler/mod.ts";
import { add, load, mul, store, u32 } from "../spec/kernel/build.ts";
import { addAsTree, orderedSum, segmentsOf } from "../spec/numerics.ts";
import { interpretKernel } from "./helpers/interpret_kernel.ts";
import {
  hasScales,
  type Product,
  resultOf,
  STORED,
} from "./helpers/products.ts";
import {
  bits,
  holds,
  type KernelTarget,
  testKernels,
  typed,
  type Words,
  workgroups,
} from "./helpers/run_kernel.ts";
import { randoms } from "./helpers/random_values.ts";
import { holdsFor } from "./helpers/seed.ts";

/** Tiles with different loops. */
const TILES: readonly MatmulTile[] = [
  { rows: 4, columns: 4, lanes: 4 },
  { rows: 4, columns: 4, lanes: 32, left: "workgroup" },
  { rows: 2, columns: 4, lanes: 32, split: 4, right: "vector" },
  { rows: 2, columns: 2, lanes: 64, split: 16 },
  { rows: 2, columns: 4, lanes: 128, split: 64, right: "vector" },
  { rows: 4, columns: 4, lanes: 512, split: 128, right: "vector" },
];

/** Lengths of a segment: shorter than a block, multiples of a block, and with a short last block. */
const LENGTHS = [8, 13, 24, 32, 45, 64, 96];

/** Interprets kernels invocation by invocation. */
const interpreter: KernelTarget = {
  name: "interpreter",
  software: false,
  run(kernel, buffers, groups) {
    const words = Object.fromEntries(
      kernel.bindings.map(({ name }) => [
        name,
        new Uint32Array(buffers[name]!.slice().buffer),
      ]),
    );
    interpretKernel(kernel, words, groups);
    return Promise.resolve(Object.fromEntries(
      kernel.bindings.filter(({ access }) => access !== "read").map((b) => [
        b.name,
        typed(b, words[b.name]!.buffer as ArrayBuffer),
      ]),
    ));
  },
};

/** Sums partial results of ranks with the kernel that ranks use. */
async function sumParts(
  target: KernelTarget,
  parts: readonly Words[],
): Promise<Words> {
  const count = parts[0]!.length;
  const kernel = addParts({
    name: "add_parts",
    count: u32(count),
    parts: parts.length,
    bindings: [reads("parts"), writes("y")],
    load: (i, rank) => load("parts", add(mul(rank, u32(count)), i)),
    epilogue: (i, sum) => [store("y", i, sum)],
  });
  const { y } = await target.run(kernel, {
    parts: Float32Array.from(parts.flatMap((part) => [...part])),
    y: new Float32Array(count),
  }, workgroups(elementwiseGrid(count)));
  return y!;
}

function addF32(a: number, b: number): number {
  return Math.fround(a + b);
}

function ranks(of: number): { of: number; rank: number }[] {
  return Array.from({ length: of }, (_, rank) => ({ of, rank }));
}

const products: fc.Arbitrary<Product> = fc.record({
  stored: fc.constantFrom(...STORED),
  length: fc.constantFrom(...LENGTHS),
  columns: fc.constantFrom(4, 10, 32),
  grouped: fc.boolean(),
  counts: fc.array(fc.constantFrom(1, 4, 9), { minLength: 2, maxLength: 2 }),
  seed: fc.nat(1000),
}).map(({ length, ...rest }) => {
  // Each scale belongs to 32 indices on one rank.
  const k = 8 *
    (hasScales(rest.stored) ? 32 * Math.ceil(length / 32) : length);
  const counts = rest.grouped ? rest.counts : rest.counts.slice(0, 1);
  return { ...rest, k, segments: 8, counts, pair: false, late: false };
});

/** Checks that ranks that shard k have the bits of one rank. Words after the results are ignored. */
async function checkSplit(
  t: { same(found: unknown, wanted: unknown): unknown },
  target: KernelTarget,
  { product, tile }: { readonly product: Product; readonly tile: MatmulTile },
): Promise<void> {
  const results = product.columns * product.counts.reduce((a, b) => a + b);
  const unsplit = await resultOf(target, product, tile);
  // A software adapter compiles for seconds.
  for (const size of target.software ? [8] : [2, 4, 8]) {
    const parts = [];
    for (const part of ranks(size)) {
      const own = await resultOf(target, { ...product, part }, tile);
      parts.push(own.slice(0, results));
    }
    t.same(
      bits(await sumParts(target, parts)),
      bits(unsplit.slice(0, results)),
    );
  }
}

for (const tile of TILES) {
  testKernels(
    `matmul() by ${tileName(tile)} over 2, 4 and 8 ranks has the bits of one`,
    async (t, target) => {
      await holds(
        products,
        (product) => checkSplit(t, target, { product, tile }),
        1,
      );
    },
  );
}

t.test("matmul() over ranks has the bits of one, interpreted", async (t) => {
  const small = products.map((product) => ({
    ...product,
    columns: 4,
    counts: product.counts.map(() => 2),
  }));
  await holdsFor(
    t,
    fc.record({ product: small, tile: fc.constantFrom(...TILES) }),
    { check: (drawn) => checkSplit(t, interpreter, drawn), runs: 4 },
  );
});

testKernels("reduce() over ranks has the bits of one", async (t, target) => {
  const drawn = fc.record({
    length: fc.constantFrom(...LENGTHS),
    segments: fc.constantFrom(2, 4, 8),
    seed: fc.nat(1000),
  });
  await holds(drawn, async ({ length, segments, seed }) => {
    const [count, k] = [5, length * segments];
    const [x, y] = [randoms(count * k, seed), randoms(k, seed + 1)];
    const part = async (
      size: number,
      rank: number,
      make: typeof reduceInTeams = reduce,
    ): Promise<Words> => {
      const own = k / size;
      const kernel = make({
        name: "contract",
        kind: "sum",
        count: u32(count),
        length: own,
        segments: segments / size,
        bindings: [reads("x"), reads("y"), writes("z")],
        terms: (i, at) => [
          load("x", add(mul(i, u32(k)), add(u32(rank * own), at))),
          load("y", add(u32(rank * own), at)),
        ],
        epilogue: (i, sum) => [store("z", i, sum)],
      });
      const buffers = { x, y, z: new Float32Array(count) };
      const groups = workgroups(elementwiseGrid(count));
      return (await target.run(kernel, buffers, groups)).z!;
    };
    const unsplit = bits(await part(1, 0));
    t.same(bits(await part(1, 0, reduceInTeams)), unsplit, "in teams");
    const sizes = target.software ? [2] : [2, 4, 8];
    for (const size of sizes.filter((n) => n <= segments)) {
      const parts = [];
      for (const { rank } of ranks(size)) parts.push(await part(size, rank));
      t.same(bits(await sumParts(target, parts)), unsplit);
    }
    if (target.name !== "cpu") return;
    const sums = Array.from({ length: count }, (_, i) =>
      orderedSum(
        k,
        (at, sum) => addF32(Math.fround(x[i * k + at]! * y[at]!), sum),
        { segments },
      ));
    t.same(unsplit, bits(Float32Array.from(sums)), "the host's order");
  }, 2);
});

testKernels("addParts() adds a balanced tree", async (t, target) => {
  for (const count of [1, 2, 3, 5, 6, 7, 8, 9, 11, 12, 16, 21]) {
    const parts = Array.from({ length: count }, (_, i) => randoms(7, i + 1));
    const wanted = Array.from(
      { length: 7 },
      (_, i) => addAsTree(parts.map((part) => part[i]!), addF32),
    );
    t.same(
      bits(await sumParts(target, parts)),
      bits(Float32Array.from(wanted)),
      `${count} parts`,
    );
  }
});

/** A contraction over two axes; the first is sharded over ranks. */
function contraction(
  { head, dim }: { readonly head: number; readonly dim: number },
  segments?: number,
): Graph {
  const net = model({ row: 3, column: 2, head, dim }, (m) => {
    const [a, b] = [
      m.input("a", "row head dim"),
      m.input("b", "column head dim"),
    ];
    return { y: dot(a, b, "head dim") };
  });
  const graph = trace(net);
  if (segments === undefined) return graph;
  const nodes = graph.nodes.map((node) =>
    node.primitive === "dot"
      ? { ...node, params: { ...node.params, segments } }
      : node
  );
  return { ...graph, nodes, outputs: { y: nodes.at(-1)! } };
}

t.test("the tree sum of evaluate() over parts has the bits of one evaluation", (t) => {
  for (const [head, dim] of [[2, 32], [8, 13], [4, 64], [16, 40]] as const) {
    const k = head * dim;
    const [a, b] = [randoms(3 * k, k), randoms(2 * k, k + 1)];
    const result = (graph: Graph, inputs: { a: Words; b: Words }): Words =>
      evaluate(graph, { inputs }).outputs["y"]!.data as Float32Array;
    const unsplit = result(contraction({ head, dim }), { a, b });
    for (const size of [2, 4, 8].filter((n) => head % n === 0)) {
      const parts = ranks(size).map(({ rank }) => {
        const own = (all: Float32Array) =>
          all.filter((_, i) => Math.floor(i % k / (k / size)) === rank);
        const local = { head: head / size, dim };
        const graph = contraction(local, segmentsOf(k) / size);
        return result(graph, { a: own(a), b: own(b) });
      });
      const sums = Array.from(
        unsplit,
        (_, i) => addAsTree(parts.map((part) => part[i]!), addF32),
      );
      t.same(bits(Float32Array.from(sums)), bits(unsplit), `${head}x${dim}`);
    }
    // The order of sums on the CPU device.
    const first = orderedSum(
      k,
      (i, sum) => addF32(Math.fround(a[i]! * b[i]!), sum),
      { segments: segmentsOf(k) },
    );
    t.equal(unsplit[0], first);
  }
  t.end();
});

t.test("segmentsOf() gives ranks complete segments", (t) => {
  const found = [1, 8, 16, 24, 32, 48, 64, 100, 128, 2048, 2880, 2884].map(
    (k) => [k, segmentsOf(k)],
  );
  t.same(found, [
    [1, 1],
    [8, 2],
    [16, 4],
    [24, 4],
    [32, 8],
    [48, 8],
    [64, 8],
    [100, 4],
    [128, 8],
    [2048, 8],
    [2880, 8],
    [2884, 4],
  ]);
  t.end();
});
