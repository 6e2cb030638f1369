/** Routing kernels, against plain code. */
// needs: cpu, gpu

import fc from "fast-check";
import {
  assignFew,
  type AssignOptions,
  elementwiseGrid,
  type Grid,
  type Kernel,
  lengthAt,
  router,
  routerByLanes,
  type RouterOptions,
  rowsGrid,
  topK,
  topKGrid,
  topKPart,
  topKParts,
} from "../compiler/kernels/mod.ts";
import { ROUTING_PRESETS } from "../compiler/graph/routing/presets.ts";
import { softmaxOf, topIndices } from "./helpers/kernel_reference.ts";
import {
  bits,
  close,
  holds,
  randoms,
  rowsOf,
  testKernels,
  workgroups,
} from "./helpers/run_kernel.ts";

const ints = (n: number) => new Int32Array(n);
const floats = (n: number) => new Float32Array(n);
const words = (n: number) => new Uint32Array(n);

/** Values with many ties, so that the order of equal values shows. */
function coarse(count: number, seed: number): Float32Array {
  return randoms(count, seed).map((x) => Math.round(4 * x) / 4);
}

testKernels(
  "topK() orders by value descending, index ascending",
  async (t, target) => {
    const cases = fc.record({
      rows: fc.constantFrom(0, 1, 3),
      count: fc.constantFrom(5, 9, 64, 1000),
      k: fc.constantFrom(1, 5),
    });
    await holds(cases, async ({ rows, count, k }) => {
      const x = coarse(rows * count, rows + k);
      const kernel = topK({ name: "topk", rows: lengthAt(0), count, k });
      const result = await target.run(kernel, {
        x,
        values: floats(rows * k),
        indices: ints(rows * k),
        lengths: Uint32Array.of(rows),
      }, workgroups(rowsGrid(rows)));
      const expected = rowsOf(x, count).map((row) => topIndices(row, k));
      t.same([...result["indices"]!], expected.flat());
      t.same(
        [...result["values"]!],
        rowsOf(x, count).flatMap((row, r) => expected[r]!.map((i) => row[i]!)),
      );
    });
  },
);

testKernels(
  "topKPart() over several passes has the order of topK()",
  async (t, target) => {
    const cases = fc.record({
      rows: fc.constantFrom(1, 2),
      count: fc.constantFrom(9, 64, 2048, 2049, 70_001),
      k: fc.constantFrom(1, 8, 64),
    });
    await holds(cases, async ({ rows, count, k: most }) => {
      const k = Math.min(most, count);
      const all = coarse(rows * count, rows + k);
      let x = all;
      let candidates = ints(0);
      for (let width = count, parts = 0; parts !== 1; width = parts * k) {
        parts = topKParts(width);
        const indexed = width !== count;
        const options = { name: "topk", rows: lengthAt(0), k, indexed };
        const result = await target.run(
          topKPart({ ...options, count: width }),
          {
            x,
            candidates,
            values: floats(rows * parts * k),
            indices: ints(rows * parts * k),
            lengths: Uint32Array.of(rows),
          },
          workgroups(topKGrid(width, rows)),
        );
        x = result["values"] as Float32Array<ArrayBuffer>;
        candidates = result["indices"] as Int32Array<ArrayBuffer>;
      }
      const rowsOfAll = rowsOf(all, count);
      const expected = rowsOfAll.map((row) => topIndices(row, k));
      t.same([...candidates], expected.flat());
      t.same(
        bits(x),
        bits(Float32Array.from(
          rowsOfAll.flatMap((row, r) => expected[r]!.map((i) => row[i]!)),
        )),
      );
    });
  },
);

testKernels(
  "router() chooses experts and weights by its preset",
  async (t, target) => {
    const cases = fc.record({
      preset: fc.constantFrom("mixtral", "olmoe"),
      tokens: fc.constantFrom(0, 1, 65),
      experts: fc.constantFrom(8, 40),
    });
    await holds(cases, async ({ preset, tokens, experts }) => {
      const k = 2;
      const rule = {
        preset,
        topK: k,
        ...ROUTING_PRESETS[preset as "mixtral" | "olmoe"],
      };
      const logits = randoms(tokens * experts, experts).map((x) =>
        Math.round(x * 40) / 10
      );
      const kernel = router({
        name: "router",
        experts,
        rule,
        tokens: lengthAt(0),
      });
      const result = await target.run(kernel, {
        logits,
        index: ints(tokens * k),
        weight: floats(tokens * k),
        lengths: Uint32Array.of(tokens),
      }, workgroups(elementwiseGrid(tokens)));
      const chosen = rowsOf(logits, experts).map((row) => topIndices(row, k));
      t.same([...result["index"]!], chosen.flat());
      const weights = rowsOf(logits, experts).flatMap((row, r) => {
        const scores = softmaxOf(row);
        const kept = chosen[r]!.map((e) => scores[e]!);
        const sum = rule.normalize === "chosen" ? kept[0]! + kept[1]! : 1;
        return kept.map((s) => s / sum);
      });
      close(t, result["weight"]!, weights);
    });
  },
);

testKernels("routerByLanes() has the bits of router()", async (t, target) => {
  const cases = fc.record({
    preset: fc.constantFrom("mixtral", "olmoe", "deepseekV3", "gptOss"),
    groups: fc.constantFrom(undefined, 1, 2),
    tokens: fc.constantFrom(0, 1, 9),
    experts: fc.constantFrom(8, 40, 160, 264),
    bias: fc.boolean(),
    padded: fc.boolean(),
  });
  await holds(
    cases,
    async ({ preset, groups, tokens, experts, bias, padded }) => {
      const k = 4;
      const o: RouterOptions = {
        name: "router",
        experts,
        rule: {
          preset,
          topK: k,
          ...ROUTING_PRESETS[
            preset as "mixtral" | "olmoe" | "deepseekV3" | "gptOss"
          ],
          ...groups === undefined
            ? {}
            : { expertGroups: { count: 4, keep: 2, best: groups } },
        },
        tokens: lengthAt(0),
        operands: [
          ...bias ? ["bias" as const] : [],
          ...padded ? ["mask" as const] : [],
        ],
      };
      const run = async (kernel: Kernel, grid: Grid) => {
        const { index, weight, slot } = await target.run(kernel, {
          // Some logits are equal.
          logits: coarse(tokens * experts, experts),
          bias: coarse(experts, 3),
          mask: Int32Array.from({ length: tokens }, (_, i) => i % 2),
          index: ints(tokens * k),
          weight: floats(tokens * k),
          slot: ints(tokens * k),
          lengths: Uint32Array.of(tokens),
        }, workgroups(grid));
        return [index, weight, slot].map((words) => words && bits(words));
      };
      t.same(
        await run(routerByLanes(o), rowsGrid(tokens)),
        await run(router(o), elementwiseGrid(tokens)),
      );
    },
  );
});

testKernels("routerByLanes() assigns like assignFew()", async (t, target) => {
  const cases = fc.record({
    tokens: fc.constantFrom(0, 1),
    experts: fc.constantFrom(8, 40, 264),
    ordered: fc.boolean(),
    splits: fc.boolean(),
    units: fc.boolean(),
  });
  await holds(cases, async ({ tokens, experts, ordered, splits, units }) => {
    const k = 4;
    const o = { name: "router", experts, k, tokens: lengthAt(0) };
    const ends = [0, 3, experts];
    const assignment: AssignOptions = {
      ...o,
      dropping: false,
      ordered,
      ...splits ? { splits: ends } : {},
      ...units ? { units: ends } : {},
    };
    const rule = {
      preset: "mixtral",
      topK: k,
      ...ROUTING_PRESETS.mixtral,
    } as const;
    const buffers = {
      lengths: Uint32Array.of(tokens),
      order: words(experts).map((_, e) => experts - 1 - e),
      groupRank: Uint32Array.of(1),
      counts: words(experts + 2).fill(99),
      sendRow: words(k),
      tokenRow: words(k),
      tokenIndices: words(k),
    };
    const assigned = await target.run(
      routerByLanes({ ...o, rule, assignment }),
      {
        ...buffers,
        logits: coarse(experts, experts),
        index: ints(k),
        weight: floats(k),
      },
      [1, 1, 1],
    );
    const expected = await target.run(assignFew(assignment), {
      ...buffers,
      index: assigned["index"]!,
    }, [1, 1, 1]);
    for (const name of ["counts", "sendRow", "tokenRow", "tokenIndices"]) {
      t.same(assigned[name], expected[name], name);
    }
  });
});
