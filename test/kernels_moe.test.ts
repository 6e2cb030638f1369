/** Routing kernels against plain code. */

import fc from "fast-check";
import {
  capacity,
  elementwiseGrid,
  lengthAt,
  router,
  topK,
} from "../compiler/kernels/mod.ts";
import { routeTokens } from "../compiler/graph/evaluate_routing.ts";
import type { RoutingRule } from "../compiler/graph/graph.ts";
import { ROUTING_PRESETS } from "../compiler/graph/routing.ts";
import type { Value } from "../compiler/graph/value.ts";
import { u32 } from "../spec/kernel/build.ts";
import {
  capacityOf,
  softmaxOf,
  topIndices,
} from "./helpers/kernel_reference.ts";
import {
  close,
  holds,
  randoms,
  rowsOf,
  testKernels,
  workgroups,
} from "./helpers/run_kernel.ts";

const ints = (n: number) => new Int32Array(n);
const floats = (n: number) => new Float32Array(n);

/** Values with many ties, so that the order of equals is seen. */
function coarse(count: number, seed: number): Float32Array {
  return randoms(count, seed).map((x) => Math.round(4 * x) / 4);
}

testKernels(
  "topK() orders by value descending, index ascending",
  async (t, target) => {
    const cases = fc.record({
      rows: fc.constantFrom(0, 1, 70),
      count: fc.constantFrom(3, 9),
      k: fc.constantFrom(1, 3),
    });
    await holds(cases, async ({ rows, count, k }) => {
      const x = coarse(rows * count, rows + k);
      const kernel = topK({ name: "topk", rows: lengthAt(0), count, k });
      const result = await target.run(kernel, {
        x,
        values: floats(rows * k),
        indices: ints(rows * k),
        lengths: Uint32Array.of(rows),
      }, workgroups(elementwiseGrid(rows)));
      const expected = rowsOf(x, count).map((row) => topIndices(row, k));
      t.same([...result["indices"]!], expected.flat());
      t.same(
        [...result["values"]!],
        rowsOf(x, count).flatMap((row, r) => expected[r]!.map((i) => row[i]!)),
      );
    });
  },
);

testKernels("router() chooses and weighs by its preset", async (t, target) => {
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
      noisy: false,
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
});

testKernels(
  "router() follows every composition of choices as the reference does",
  async (t, target) => {
    const [experts, tokens] = [16, 40];
    const cases = fc.record({
      score: fc.constantFrom("softmax", "chosenSoftmax", "sigmoid", "none"),
      normalize: fc.constantFrom("none", "chosen"),
      groups: fc.constantFrom("none", "max", "top2Sum"),
      biased: fc.boolean(),
      topK: fc.constantFrom(1, 4),
      scale: fc.constantFrom(1, 2.5),
      seed: fc.nat(100),
    });
    await holds(cases, async ({ groups, biased, scale, seed, ...choices }) => {
      const rule: RoutingRule = {
        ...choices as Pick<RoutingRule, "score" | "normalize" | "topK">,
        ...{ preset: "none", scale, epsilon: 1e-20 },
        ...groups === "none" ? {} : {
          expertGroups: {
            count: 4,
            keep: 2,
            score: groups as "max" | "top2Sum",
          },
        },
      };
      const logits = randoms(tokens * experts, seed).map((x) => 4 * x + 5);
      const bias = randoms(experts, seed + 1);
      const kernel = router({
        ...{ name: "router", experts, rule, noisy: false, biased },
        tokens: lengthAt(0),
      });
      const result = await target.run(kernel, {
        ...{ logits, bias },
        index: ints(tokens * rule.topK),
        weight: floats(tokens * rule.topK),
        lengths: Uint32Array.of(tokens),
      }, workgroups(elementwiseGrid(tokens)));
      const value = (data: Float32Array, shape: number[]): Value => ({
        ...{ axes: [], dtype: "f32", shape, data },
      });
      const routed = routeTokens(
        rule,
        value(logits, [tokens, experts]),
        biased ? { bias: value(bias, [experts]) } : {},
      );
      t.same([...result["index"]!], routed.index);
      close(t, result["weight"]!, routed.weight);
    });
  },
);

testKernels(
  "router() with noise moves only the second choice",
  async (t, target) => {
    const [tokens, experts] = [20, 4];
    const logits = randoms(tokens * experts, 5);
    const noise = randoms(tokens * experts, 6).map((x) => 2 * x);
    const rule = {
      preset: "fairscale.top2",
      topK: 2,
      ...ROUTING_PRESETS["fairscale.top2"],
    };
    const kernel = router({
      name: "router",
      experts,
      rule,
      tokens: u32(tokens),
      noisy: true,
    });
    const result = await target.run(kernel, {
      logits,
      noise,
      index: ints(tokens * 2),
      weight: floats(tokens * 2),
    }, workgroups(elementwiseGrid(tokens)));
    const noisy = rowsOf(noise, experts);
    const expected = rowsOf(logits, experts).map((row, t) => {
      const [first] = topIndices(row, 1);
      const rest = row.map((x, e) =>
        e === first ? -Infinity : x + noisy[t]![e]!
      );
      return [first!, topIndices(rest, 1)[0]!];
    });
    t.same([...result["index"]!], expected.flat());
    const weights = rowsOf(logits, experts).flatMap((row, t) =>
      expected[t]!.map((e) => softmaxOf(row)[e]!)
    );
    close(t, result["weight"]!, weights);
  },
);

testKernels(
  "capacity() drops by fairscale's rule within each group",
  async (t, target) => {
    const experts = 4;
    const cases = fc.record({
      groups: fc.constantFrom(0, 1, 3),
      size: fc.constantFrom(1, 8, 13),
      how: fc.constantFrom("contiguous", "tensor"),
    });
    await holds(cases, async ({ groups, size, how }) => {
      const tokens = groups * size;
      // Few distinct logits crowd the experts, so that tokens are dropped.
      const logits = rowsOf(coarse(tokens * experts, size), experts);
      const index = logits.map((row) => topIndices(row, 2));
      const score = logits.map((row, t) =>
        index[t]!.map((e) => softmaxOf(row)[e]!)
      );
      const group = logits.map((_, t) =>
        how === "tensor" ? t % groups : Math.floor(t / size)
      );
      const kernel = capacity({
        name: "capacity",
        experts,
        tokens: lengthAt(0),
        group: how === "tensor" ? "tensor" : lengthAt(1),
      });
      const result = await target.run(kernel, {
        index: Int32Array.from(index.flat()),
        score: Float32Array.from(score.flat()),
        group: Int32Array.from(group),
        slot: ints(tokens * 2),
        weight: floats(tokens * 2),
        lengths: Uint32Array.of(tokens, size),
      }, workgroups(elementwiseGrid(tokens)));
      const slot: number[][] = logits.map(() => []);
      const weight: number[][] = logits.map(() => []);
      for (let g = 0; g < groups; g++) {
        const members = group.flatMap((of, t) => of === g ? [t] : []);
        const expected = capacityOf(
          members.map((t) => index[t]!),
          members.map((t) => score[t]!),
          experts,
        );
        members.forEach((t, i) => {
          slot[t] = expected.slot[i]!;
          weight[t] = expected.weight[i]!;
        });
      }
      t.same([...result["slot"]!], slot.flat());
      close(t, result["weight"]!, weight.flat());
    }, 6);
  },
);
