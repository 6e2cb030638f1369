/** The experts of one token in two launches, against a router, matmuls and a combine. */
// needs: cpu, gpu

import fc from "fast-check";
import {
  bindings,
  combine,
  elementwiseGrid,
  type Expr,
  matmul,
  routerByLanes,
  rowsGrid,
} from "../compiler/kernels/mod.ts";
import {
  choicesGroups,
  matmulOfChoices,
} from "../compiler/kernels/matmul/choices.ts";
import {
  choicesAtOnce,
  matmulCombined,
} from "../compiler/kernels/matmul/combine.ts";
import { ROUTING_PRESETS } from "../compiler/graph/routing/presets.ts";
import {
  matmulGrid,
  matmulShape,
  type MatmulTile,
} from "../compiler/tuning/mod.ts";
import { TUNING } from "../engine/tune/tuning.ts";
import { add, convert, load, mul, store, u32 } from "../spec/kernel/build.ts";
import { bits, holds, testKernels, workgroups } from "./helpers/run_kernel.ts";
import { randoms } from "./helpers/random_values.ts";

const floats = (n: number) => new Float32Array(n);

const TILES: readonly MatmulTile[] = [
  { ...TUNING.gpu.matmul!, rows: 1 },
  // If a device has as many lanes.
  { ...TUNING.gpu.matmul!, rows: 1, lanes: 512, split: 128 },
  { rows: 1, columns: 2, lanes: 128, split: 8 },
];

testKernels(
  "combined kernels of one token have the bits of separate kernels",
  async (t, target) => {
    const cases = fc.record({
      experts: fc.constantFrom(5, 33),
      topK: fc.constantFrom(1, 3, 4),
      length: fc.constantFrom(40, 96, 2880),
      stored: fc.constantFrom("f32", "int4x32"),
      columns: fc.constantFrom(8, 40),
      preset: fc.constantFrom("mixtral", "olmoe", "deepseekV3", "gptOss"),
      tile: fc.constantFrom(...TILES),
    });
    await holds(cases, async ({ length, stored, ...sizes }) => {
      const { experts, topK, columns, preset, tile } = sizes;
      const isPacked = stored === "int4x32";
      // Groups are whole; segments of 40 end with a short block.
      const k = isPacked && length === 40 ? 160 : length;
      const segments = k === 2880 ? 8 : k === 160 ? 4 : 1;
      const rule = {
        preset,
        topK,
        ...ROUTING_PRESETS[preset as "mixtral"],
      };
      const router = { name: "router", experts, rule, tokens: u32(1) };
      const elements = experts * k * columns;
      const bias = randoms(experts * columns, 11);
      const withBias = (
        { column, expert }: { readonly column: Expr; readonly expert: Expr },
        sum: Expr,
      ) => add(sum, load("bias", add(mul(expert, u32(columns)), column)));
      const weights = isPacked
        ? {
          w: Uint32Array.from(
            bits(randoms(elements / 8, k)),
            (x) => Math.imul(x, 0x9e3779b1),
          ),
          scales: randoms(elements / 32, k),
        }
        : { w: randoms(elements, k) };
      const w = { ...weights, bias };
      const ofWeights = isPacked
        ? { w: "u32", scales: "f32", bias: "f32" } as const
        : { w: "f32", bias: "f32" } as const;
      const logits = randoms(experts, 7).map((x) => Math.round(4 * x) / 4);
      const product = {
        k,
        segments,
        columns,
        tile,
        rows: u32(1),
        grouped: { tiles: "tiles" },
        weights: [{
          binding: "w",
          stored,
          ...isPacked ? { scales: "scales" } : {},
          rowStride: columns,
        }],
        left: (base: Expr, i: Expr) => load("x", add(base, i)),
        epilogue: (
          { row, ...at }: {
            readonly row: Expr;
            readonly column: Expr;
            readonly expert: Expr;
          },
          [sum]: readonly Expr[],
        ) => [
          store(
            "y",
            add(mul(row, u32(columns)), at.column),
            withBias(at, sum!),
          ),
        ],
      };
      const { index, weight } = await target.run(routerByLanes(router), {
        logits,
        index: new Int32Array(topK),
        weight: floats(topK),
      }, workgroups(rowsGrid(1)));
      const tiles = Uint32Array.from([
        topK,
        ...[...index!].flatMap((expert, j) => [expert, j, 1]),
      ]);
      /** Runs the matmul of each choice; `apart` is 1 if each choice has its own row of x, 0 if they share one. */
      const separate = async (x: Float32Array, apart: number) => {
        const grouped = {
          ...product,
          name: "grouped",
          bindings: bindings({ x: "f32", ...ofWeights, tiles: "u32" }, {
            y: "f32",
          }),
          leftRow: (row: Expr) => mul(row, u32(apart)),
        };
        const { y } = await target.run(
          matmul(grouped),
          { x, ...w, tiles, y: floats(topK * columns) },
          workgroups(matmulGrid(grouped, topK)),
        );
        return y as Float32Array;
      };
      const token = randoms(k, 3);
      const chosen = {
        ...product,
        name: "chosen",
        router,
        bindings: bindings({ logits: "f32", x: "f32", ...ofWeights }, {
          y: "f32",
          index: "i32",
          weight: "f32",
        }),
        leftRow: () => u32(0),
        choose: (choice: Expr, expert: Expr, share: Expr) => [
          store("index", choice, convert("i32", expert)),
          store("weight", choice, share),
        ],
      };
      const found = await target.run(matmulOfChoices(chosen), {
        logits,
        x: token,
        ...w,
        y: floats(topK * columns),
        index: new Int32Array(topK),
        weight: floats(topK),
      }, [1, choicesGroups(chosen), 1]);
      t.same([...found["index"]!], [...index!]);
      t.same(bits(found["weight"]!), bits(weight!));
      t.same(bits(found["y"]!), bits(await separate(token, 0)));

      const x = randoms(topK * k, 5);
      const { y: expected } = await target.run(
        combine({
          name: "combine",
          row: columns,
          k: topK,
          tokens: u32(1),
          weighed: true,
          bindings: bindings(
            { returned: "f32", sendRow: "u32", weight: "f32" },
            { y: "f32" },
          ),
          epilogue: (i, sum) => [store("y", i, sum)],
        }),
        {
          returned: await separate(x, k),
          sendRow: Uint32Array.from({ length: topK }, (_, j) => j),
          weight: weight!,
          y: floats(columns),
        },
        workgroups(elementwiseGrid(columns)),
      );
      const { epilogue: _, ...summed } = product;
      const combined = {
        ...summed,
        name: "combined",
        choices: topK,
        bindings: bindings(
          { x: "f32", ...ofWeights, index: "i32", weight: "f32" },
          { y: "f32" },
        ),
        leftRow: (row: Expr) => mul(row, u32(k)),
        expert: (choice: Expr) => convert("u32", load("index", choice, "i32")),
        weight: (choice: Expr) => load("weight", choice),
        result: (
          at: { readonly column: Expr; readonly expert: Expr },
          sum: Expr,
          use: (value: Expr) => ReturnType<typeof product.epilogue>,
        ) => use(withBias(at, sum)),
        epilogue: (column: Expr, sum: Expr) => [store("y", column, sum)],
      };
      t.ok(choicesAtOnce(combined) > 0);
      const { y } = await target.run(matmulCombined(combined), {
        x,
        ...w,
        index: index!,
        weight: weight!,
        y: floats(columns),
      }, [1, Math.ceil(columns / matmulShape(combined).columns), 1]);
      t.same(bits(y!), bits(expected!));
    }, 10);
  },
);
