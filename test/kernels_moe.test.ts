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
  type KernelTarget,
  rowsOf,
  testKernels,
  workgroups,
} from "./helpers/run_kernel.ts";
import { randoms } from "./helpers/random_values.ts";

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

/** Values and indices of the k largest of rows, by as many launches as are needed. */
async function largestOf(
  target: KernelTarget,
  { x, rows, count, k }: {
    readonly x: Float32Array;
    readonly rows: number;
    readonly count: number;
    readonly k: number;
  },
) {
  let values = x;
  let indices = ints(0);
  for (let width = count, parts = 0; parts !== 1; width = parts * k) {
    parts = topKParts(width);
    const indexed = width !== count;
    const options = { name: "topk", rows: lengthAt(0), k, indexed };
    const result = await target.run(
      topKPart({ ...options, count: width }),
      {
        x: values,
        candidates: indices,
        values: floats(rows * parts * k),
        indices: ints(rows * parts * k),
        lengths: Uint32Array.of(rows),
      },
      workgroups(topKGrid(width, rows)),
    );
    values = result["values"] as Float32Array<ArrayBuffer>;
    indices = result["indices"] as Int32Array<ArrayBuffer>;
  }
  return { values, indices };
}

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
      const x = coarse(rows * count, rows + k);
      const options = { x, rows, count, k };
      const { values, indices } = await largestOf(target, options);
      const rowsOfAll = rowsOf(x, count);
      const expected = rowsOfAll.map((row) => topIndices(row, k));
      t.same([...indices], expected.flat());
      t.same(
        bits(values),
        bits(Float32Array.from(
          rowsOfAll.flatMap((row, r) => expected[r]!.map((i) => row[i]!)),
        )),
      );
    });
  },
);

/** Floats whose order differs from that of their bits, or that comparisons ignore. */
const SPECIAL = [
  ...[0x7fc00000, 0x7f800001, 0xffc00000, 0xffffffff, 0x7f800000],
  ...[0xff800000, 0x00000000, 0x80000000, 0x00000001, 0x80000001],
];

testKernels(
  "topKPart() without a sort chooses the first of the sorted elements",
  async (t, target) => {
    const element = fc.oneof(
      fc.constantFrom(...SPECIAL),
      fc.integer({ min: 0, max: 0xffffffff }),
    );
    const cases = fc.record({
      count: fc.constantFrom(2, 3, 17, 100, 2048, 2049, 5000),
      start: fc.nat(4999),
      elements: fc.array(element, { minLength: 1, maxLength: 40 }),
    });
    await holds(cases, async ({ count, start, elements }) => {
      // Elements after the first ones are the lowest of all.
      const x = new Uint32Array(count).fill(0xffffffff);
      elements.forEach((bits, i) => x[(start + 7 * i) % count] = bits);
      const of = { x: new Float32Array(x.buffer), rows: 1, count };
      const one = await largestOf(target, { ...of, k: 1 });
      const two = await largestOf(target, { ...of, k: 2 });
      t.equal(one.indices[0], two.indices[0]);
      t.equal(bits(one.values)[0], bits(two.values)[0]);
      const key = (bits: number) =>
        bits === 0x80000000 || bits === 0
          ? 0x80000000
          : bits >>> 31
          ? ~bits >>> 0
          : (bits | 0x80000000) >>> 0;
      const best = [...x].reduce(
        (best, bits, i) => key(bits) > key(x[best]!) ? i : best,
        0,
      );
      t.equal(one.indices[0], best, "the highest key, the lowest index");
    }, 20);
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
