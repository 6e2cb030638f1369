/** Kernels that count, send, exchange and return rows, against plain code. */
// needs: cpu, gpu

import fc from "fast-check";
import {
  assign,
  assignFew,
  type AssignOptions,
  bindings,
  combine,
  DROPPED,
  elementwiseGrid,
  FEW_CHOICES,
  lengthAt,
  permute,
  regroup,
  regroupGrid,
} from "../compiler/kernels/mod.ts";
import { exchange, exchangeGrid } from "../spec/local/exchange.ts";
import { gather } from "../spec/local/gather.ts";
import { store } from "../spec/kernel/build.ts";
import { assignOf } from "./helpers/kernel_reference.ts";
import {
  close,
  holds,
  rowsOf,
  testKernels,
  type Words,
  workgroups,
} from "./helpers/run_kernel.ts";
import { randoms } from "./helpers/random_values.ts";

const words = (n: number) => new Uint32Array(n);
const ints = (n: number) => new Int32Array(n);
const floats = (n: number) => new Float32Array(n);

testKernels(
  "assign() orders by expert, then token, and skips dropped choices",
  async (t, target) => {
    const cases = fc.record({
      tokens: fc.oneof(fc.constantFrom(0, 1, 300), fc.nat(100)),
      experts: fc.oneof(
        fc.constantFrom(1, 70),
        fc.integer({ min: 1, max: 20 }),
      ),
      k: fc.integer({ min: 1, max: 4 }),
      dropping: fc.boolean(),
      ordered: fc.boolean(),
      // Units of one size, or split anywhere, some without experts.
      split: fc.oneof(
        fc.nat(9),
        fc.array(fc.nat(70), { minLength: 1, maxLength: 20 }),
      ),
      seed: fc.nat(99),
    });
    await holds(cases, async ({ tokens, experts, k, ...how }) => {
      const { dropping, ordered, seed, split } = how;
      const inner = typeof split === "number"
        ? words(experts).map((_, e) => e).filter((e) => e % (split + 1) === 0)
        : Uint32Array.from(split, (e) => Math.min(e, experts)).sort();
      const units = split === 0 ? undefined : [0, ...inner, experts];
      const unitCount = units ? units.length - 1 : 0;
      const noise = randoms(tokens * k * 2, seed).map((x) => (x + 1) / 2);
      const index = ints(tokens * k).map((_, a) =>
        Math.floor(noise[a]! * experts)
      );
      const slot = index.map((_, a) => noise[tokens * k + a]! < 0.3 ? -1 : 0);
      const order = words(experts).map((_, e) => experts - 1 - e);
      const options: AssignOptions = {
        name: "assign",
        experts,
        k,
        tokens: lengthAt(0),
        dropping,
        ordered,
        ...units ? { units } : {},
      };
      const few = tokens * k <= FEW_CHOICES && seed % 3 === 0;
      // Several workgroups: ranges of some units, or of three experts.
      const ranges = [
        0,
        ...(units ?? [...words(experts).keys()]).filter((e, i) =>
          i % 3 === 2 && e < experts
        ),
        experts,
      ];
      const several = !few && seed % 3 === 1;
      const kernel = few
        ? assignFew(options)
        : assign({ ...options, ...several ? { ranges } : {} });
      const result = await target.run(kernel, {
        index,
        slot,
        order,
        counts: words(experts + unitCount).fill(99),
        sendRow: words(tokens * k),
        ...units
          ? { tokenRow: words(tokens * k), tokenIndices: words(tokens * k) }
          : {},
        lengths: Uint32Array.of(tokens),
      }, [several ? ranges.length - 1 : 1, 1, 1]);
      const sent = [...index].map((e) => ordered ? order[e]! : e);
      const kept = [...slot].map((s) => !dropping || s >= 0);
      const expected = assignOf(sent, experts, kept);
      const tokensOf = Array.from({ length: unitCount }, (_, u) =>
        new Set(
          sent.flatMap((e, a) =>
            kept[a] && e >= units![u]! && e < units![u + 1]!
              ? [Math.floor(a / k)]
              : []
          ),
        ).size);
      t.same([...result["counts"]!], [...expected.counts, ...tokensOf]);
      t.same([...result["sendRow"]!], expected.sendRow);
      if (!units) return;
      // Each token is sent to a unit once, at its first choice in the unit.
      const inUnit = (a: number, u: number) =>
        kept[a]! && sent[a]! >= units[u]! && sent[a]! < units[u + 1]!;
      const tokenRow = new Array<number>(tokens * k).fill(DROPPED);
      const tokenIndices = new Array<number>(
        expected.counts.reduce((a, b) => a + b, 0),
      );
      let rows = 0;
      for (let u = 0; u < unitCount; u++) {
        const first = rows;
        for (let token = 0; token < tokens; token++) {
          const choices = Array.from({ length: k }, (_, j) => token * k + j);
          const there = choices.filter((a) => inUnit(a, u));
          if (there.length === 0) continue;
          for (const a of there) {
            tokenIndices[expected.sendRow[a]!] = rows - first;
          }
          tokenRow[there[0]!] = rows++;
        }
      }
      t.same([...result["tokenRow"]!], tokenRow);
      t.same(
        [...result["tokenIndices"]!.subarray(0, tokenIndices.length)],
        tokenIndices,
      );
    }, 8);
  },
);

testKernels("permute() and combine() use send order", async (t, target) => {
  const cases = fc.record({
    tokens: fc.nat(33),
    k: fc.integer({ min: 1, max: 5 }),
    row: fc.integer({ min: 1, max: 9 }),
    seed: fc.nat(1000),
  });
  await holds(cases, async ({ tokens, k, row, seed }) => {
    const x = randoms(tokens * row, seed);
    const weight = randoms(tokens * k, seed + 1);
    // Choices are in reverse order. Every seventh is dropped; its row is not written.
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
      combine({
        name: "combine",
        ...shape,
        weighed: true,
        bindings: bindings(
          { returned: "f32", sendRow: "u32", weight: "f32" },
          { y: "f32" },
        ),
        epilogue: (i, sum) => [store("y", i, sum)],
      }),
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
      Array.from({ length: k }, (_, j) => t * k + j).reduce(
        (sum, a) => sum + (sendRow[a] === DROPPED ? 0 : weight[a]!),
        0,
      );
    close(
      t,
      combined["y"]!,
      rows.flatMap((x, t) => x.map((v) => v * total(t))),
    );
  });
});

testKernels(
  "exchange() moves rows forward and back; regroup() orders them by expert",
  async (t, target) => {
    const rowWords = 3;
    const cases = fc.record({
      splits: fc.constantFrom([0, 1], [0, 2, 4], [0, 3, 3, 4, 6, 7]),
      seed: fc.nat(99),
      max: fc.constantFrom(0, 5),
    });
    await holds(cases, async ({ splits, seed, max }) => {
      const groupSize = splits.length - 1;
      const experts = splits.at(-1)!;
      const counts = words(groupSize * experts)
        .map((_, i) =>
          Math.floor((randoms(i + 1, seed)[i]! + 1) / 2 * (max + 1))
        );
      const count = (s: number, c: number) => counts[s * experts + c]!;
      // A row is its sender, expert and index: sent by expert, received by sender, regrouped by expert.
      const block = (s: number, c: number) =>
        Array.from({ length: count(s, c) }, (_, i) => [s, c, i]);
      const range = (n: number) => Array.from({ length: n }, (_, i) => i);
      const owned = (p: number) =>
        range(experts).filter((c) => splits[p]! <= c && c < splits[p + 1]!);
      const sent = range(groupSize).map((s) =>
        range(experts).flatMap((c) => block(s, c))
      );
      const received = range(groupSize).map((p) =>
        range(groupSize).flatMap((s) => owned(p).flatMap((c) => block(s, c)))
      );
      const move = async (
        direction: "forward" | "back",
        from: number[][][],
        to: number[][][],
      ) => {
        for (const p of range(groupSize)) {
          let dst: Words = words(to[p]!.length * rowWords);
          let receivedCounts: Words = words(groupSize).fill(99);
          for (let start = 0; start < groupSize; start += 4) {
            const sources = range(groupSize).slice(start, start + 4);
            const kernel = exchange({
              name: "exchange",
              direction,
              splits,
              sources,
              rowWords,
            });
            const result = await target.run(kernel, {
              counts,
              groupRank: Uint32Array.of(p),
              dst,
              receivedCounts,
              ...Object.fromEntries(
                sources.map((
                  s,
                  f,
                ) => [`src${f}`, Uint32Array.from(from[s]!.flat())]),
              ),
            }, workgroups(exchangeGrid(to[p]!.length)));
            dst = result["dst"]!;
            receivedCounts = result["receivedCounts"]!;
          }
          t.same(rowsOf(dst, rowWords), to[p]);
          t.same(
            [...receivedCounts],
            range(groupSize).map((s) => {
              const [sender, receiver] = direction === "forward"
                ? [s, p]
                : [p, s];
              return owned(receiver).reduce(
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
      for (const p of range(groupSize)) {
        const rows = received[p]!.length;
        const kernel = regroup({
          name: "regroup",
          splits,
          tileRows,
          wide: p % 2 === 1,
        });
        const result = await target.run(kernel, {
          counts,
          groupRank: Uint32Array.of(p),
          tiles: words(1 + 3 * (rows + experts)),
          rowOf: words(rows),
          expertOf: words(rows),
          rowCount: words(1).fill(99),
        }, workgroups(regroupGrid(rows)));
        const local = owned(p);
        const grouped = local.map((c) =>
          range(groupSize).flatMap((s) => block(s, c))
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

testKernels(
  "gather() puts each source at its group rank",
  async (t, target) => {
    const cases = fc.record({
      size: fc.integer({ min: 1, max: 140 }),
      sources: fc.uniqueArray(fc.nat(5), { minLength: 1, maxLength: 4 }),
    });
    await holds(cases, async ({ size, sources }) => {
      const kernel = gather({ name: "gather", words: size, sources });
      const src = sources.map((s) => words(size).map((_, i) => s * 1000 + i));
      const result = await target.run(kernel, {
        ...Object.fromEntries(src.map((part, f) => [`src${f}`, part])),
        dst: words(6 * size),
      }, workgroups(elementwiseGrid(size)));
      const expected = Array.from({ length: 6 }, (_, p) => {
        const f = sources.indexOf(p);
        return [...f < 0 ? words(size) : src[f]!];
      });
      t.same([...result["dst"]!], expected.flat());
    }, 3);
  },
);
