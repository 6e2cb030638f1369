/** Routing, dispatch, exchange and combine kernels against plain code. */

import fc from "fast-check";
import {
  assign,
  capacity,
  combine,
  DROPPED,
  elementwiseGrid,
  exchange,
  exchangeGrid,
  gather,
  lengthAt,
  permute,
  regroup,
  regroupGrid,
  router,
  topK,
} from "../compiler/kernels/mod.ts";
import { routeTokens } from "../compiler/graph/evaluate_routing.ts";
import type { RoutingRule } from "../compiler/graph/graph.ts";
import { ROUTING_PRESETS } from "../compiler/graph/routing.ts";
import type { Value } from "../compiler/graph/value.ts";
import { u32 } from "../spec/kernel/build.ts";
import {
  assignOf,
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
  type Words,
  workgroups,
} from "./helpers/run_kernel.ts";

const words = (n: number) => new Uint32Array(n);
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

testKernels(
  "assign() orders by column, then token, and skips dropped choices",
  async (t, target) => {
    const cases = fc.record({
      tokens: fc.constantFrom(0, 1, 50, 300),
      experts: fc.constantFrom(1, 5, 70),
      dropping: fc.boolean(),
      ordered: fc.boolean(),
      seed: fc.nat(99),
    });
    await holds(cases, async ({ tokens, experts, dropping, ordered, seed }) => {
      const k = 2;
      const noise = randoms(tokens * k * 2, seed).map((x) => (x + 1) / 2);
      const index = ints(tokens * k).map((_, a) =>
        Math.floor(noise[a]! * experts)
      );
      const slot = index.map((_, a) => noise[tokens * k + a]! < 0.3 ? -1 : 0);
      const order = words(experts).map((_, e) => experts - 1 - e);
      const kernel = assign({
        name: "assign",
        experts,
        k,
        tokens: lengthAt(0),
        dropping,
        ordered,
      });
      const result = await target.run(kernel, {
        index,
        slot,
        order,
        counts: words(experts).fill(99),
        sendRow: words(tokens * k),
        lengths: Uint32Array.of(tokens),
      }, [1, 1, 1]);
      const expected = assignOf(
        [...index].map((e) => ordered ? order[e]! : e),
        experts,
        [...slot].map((s) => !dropping || s >= 0),
      );
      t.same([...result["counts"]!], expected.counts);
      t.same([...result["sendRow"]!], expected.sendRow);
    }, 8);
  },
);

testKernels("permute() and combine() meet in send order", async (t, target) => {
  const [k, row] = [2, 5];
  for (const tokens of [0, 1, 33]) {
    const x = randoms(tokens * row, 1);
    const weight = randoms(tokens * k, 2);
    // Choices in reverse order; every seventh is dropped and leaves its row alone.
    const sendRow = words(tokens * k)
      .map((_, a) => a % 7 === 3 ? DROPPED : tokens * k - 1 - a);
    const lengths = Uint32Array.of(tokens);
    const shape = { row, k, tokens: lengthAt(0) };
    const sent = await target.run(
      permute({ name: "permute", ...shape }),
      { x, sendRow, send: floats(tokens * k * row), lengths },
      workgroups(elementwiseGrid(tokens * k * row)),
    );
    const rows = rowsOf(x, row);
    const expected = Array.from(
      { length: tokens * k },
      () => new Array<number>(row).fill(0),
    );
    sendRow.forEach((to, a) => {
      if (to !== DROPPED) expected[to] = rows[Math.floor(a / k)]!;
    });
    t.same([...sent["send"]!], expected.flat());
    const combined = await target.run(
      combine({ name: "combine", ...shape }),
      {
        returned: sent["send"]!,
        sendRow,
        weight,
        y: floats(x.length),
        lengths,
      },
      workgroups(elementwiseGrid(tokens * row)),
    );
    const total = (t: number) =>
      [0, 1].reduce((sum, j) => {
        const a = t * k + j;
        return sum + (sendRow[a] === DROPPED ? 0 : weight[a]!);
      }, 0);
    close(
      t,
      combined["y"]!,
      rows.flatMap((x, t) => x.map((v) => v * total(t))),
    );
  }
});

testKernels(
  "exchange() moves rows forward and back; regroup() orders them by expert",
  async (t, target) => {
    const rowWords = 3;
    const cases = fc.record({
      splits: fc.constantFrom([0, 1], [0, 2, 4], [0, 3, 3, 4, 6, 7]),
      seed: fc.nat(99),
      most: fc.constantFrom(0, 5),
    });
    await holds(cases, async ({ splits, seed, most }) => {
      const positions = splits.length - 1;
      const columns = splits.at(-1)!;
      const counts = words(positions * columns)
        .map((_, i) =>
          Math.floor((randoms(i + 1, seed)[i]! + 1) / 2 * (most + 1))
        );
      const count = (s: number, c: number) => counts[s * columns + c]!;
      // A row is its sender, column and number there: sent by column, received by sender, grouped by column.
      const block = (s: number, c: number) =>
        Array.from({ length: count(s, c) }, (_, i) => [s, c, i]);
      const range = (n: number) => Array.from({ length: n }, (_, i) => i);
      const columnsOf = (p: number) =>
        range(columns).filter((c) => splits[p]! <= c && c < splits[p + 1]!);
      const sent = range(positions).map((s) =>
        range(columns).flatMap((c) => block(s, c))
      );
      const received = range(positions).map((p) =>
        range(positions).flatMap((s) =>
          columnsOf(p).flatMap((c) => block(s, c))
        )
      );
      const move = async (
        direction: "forward" | "back",
        from: number[][][],
        to: number[][][],
      ) => {
        for (const p of range(positions)) {
          let dst: Words = words(to[p]!.length * rowWords);
          let moved: Words = words(positions).fill(99);
          for (let start = 0; start < positions; start += 4) {
            const sources = range(positions).slice(start, start + 4);
            const kernel = exchange({
              name: "exchange",
              direction,
              splits,
              sources,
              rowWords,
            });
            const result = await target.run(kernel, {
              counts,
              position: Uint32Array.of(p),
              dst,
              moved,
              ...Object.fromEntries(
                sources.map((
                  s,
                  f,
                ) => [`src${f}`, Uint32Array.from(from[s]!.flat())]),
              ),
            }, workgroups(exchangeGrid(to[p]!.length)));
            dst = result["dst"]!;
            moved = result["moved"]!;
          }
          t.same(rowsOf(dst, rowWords), to[p]);
          t.same(
            [...moved],
            range(positions).map((s) => {
              const [sender, receiver] = direction === "forward"
                ? [s, p]
                : [p, s];
              return columnsOf(receiver).reduce(
                (n, c) => n + count(sender, c),
                0,
              );
            }),
          );
        }
      };
      await move("forward", sent, received);
      await move("back", received, sent);

      const tileRows = 2;
      for (const p of range(positions)) {
        const rows = received[p]!.length;
        const kernel = regroup({ name: "regroup", splits, tileRows });
        const result = await target.run(kernel, {
          counts,
          position: Uint32Array.of(p),
          tiles: words(1 + 3 * (rows + columns)),
          rowOf: words(rows),
          expertOf: words(rows),
          rowCount: words(1).fill(99),
        }, workgroups(regroupGrid(rows)));
        const local = columnsOf(p);
        const grouped = local.map((c) =>
          range(positions).flatMap((s) => block(s, c))
        );
        const [rowOf, expertOf] = [result["rowOf"]!, result["expertOf"]!];
        t.same([...rowOf].map((row) => received[p]![row]), grouped.flat());
        t.same([...expertOf], grouped.flatMap((rows, e) => rows.map(() => e)));
        t.same([...result["rowCount"]!], [rows]);
        let first = 0;
        const tiles = grouped.flatMap((rows, e) => {
          const start = first;
          first += rows.length;
          return range(Math.ceil(rows.length / tileRows)).map((i) => [
            e,
            start + i * tileRows,
            Math.min(tileRows, rows.length - i * tileRows),
          ]);
        });
        const list = result["tiles"]!;
        t.equal(list[0], tiles.length);
        t.same([...list.subarray(1, 1 + 3 * tiles.length)], tiles.flat());
      }
    }, 6);
  },
);

testKernels("gather() puts each source at its position", async (t, target) => {
  const sources = [1, 3];
  const kernel = gather({ name: "gather", words: 70, sources });
  const src = sources.map((s) => words(70).map((_, i) => s * 1000 + i));
  const result = await target.run(kernel, {
    src0: src[0]!,
    src1: src[1]!,
    dst: words(280),
  }, workgroups(elementwiseGrid(70)));
  const expected = [words(70), src[0]!, words(70), src[1]!];
  t.same([...result["dst"]!], expected.flatMap((part) => [...part]));
});
