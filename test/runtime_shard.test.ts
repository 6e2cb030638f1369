/** Assignment of items to ranks, and sharded tensors. */

import t from "tap";
import fc from "fast-check";
import {
  assignAxes,
  assignBlocks,
  assignSequences,
  forEachRun,
  lastingAxes,
  localSpan,
} from "../runtime/shard.ts";
import type { Plan } from "../spec/plan/plan.ts";
import "./helpers/seed.ts";

t.test("assignBlocks() gives the first blocks one item more", (t) => {
  t.same(assignBlocks(7, 3).map((b) => [...b]), [[0, 1, 2], [3, 4], [5, 6]]);
  t.same(assignBlocks(1, 2).map((b) => [...b]), [[0], []]);
  t.same(assignBlocks(0, 2).map((b) => [...b]), [[], []]);
  t.end();
});

t.test("assignSequences() assigns the longest first, ties to the lower rank", (t) => {
  // Lengths of sequences 0 to 3: 1, 3, 2, 2.
  const assigned = assignSequences([0, 1, 1, 2, 3, 2, 1, 3], 2, new Map());
  t.same(assigned.map((b) => [...b]), [[0, 1, 2, 6], [3, 4, 5, 7]]);
  t.end();
});

t.test("assignSequences() keeps a sequence on its rank", (t) => {
  const rankOf = new Map([[5, 1]]);
  const assigned = assignSequences([5, 6, 7], 2, rankOf);
  t.same(assigned.map((b) => [...b]), [[1, 2], [0]].map((b) => b));
  t.same([...rankOf], [[5, 1], [6, 0], [7, 0]]);
  t.end();
});

t.test("assignAxes() assigns items to the ranks of the items they index", (t) => {
  const plan = {
    mesh: [{ name: "ep", size: 2 }],
    axes: {
      row: {
        size: 4,
        dynamic: true,
        over: ["ep"],
        assignment: { by: "items", input: "rows", of: "token" },
      },
      token: {
        size: 8,
        dynamic: true,
        over: ["ep"],
        assignment: { by: "sequence", input: "sequence" },
      },
    },
  } as unknown as Plan;
  const ints = (...data: number[]) => ({
    dtype: "i32" as const,
    shape: [data.length],
    data: Int32Array.from(data),
  });
  const axes = assignAxes(
    plan,
    new Map([["token", 5], ["row", 3]]),
    { sequence: ints(0, 1, 1, 0, 2), rows: ints(3, 4, 2) },
  );
  const lists = (axis: string) => axes.assigned(axis)!.map((part) => [...part]);
  t.same(lists("token"), [[0, 3, 4], [1, 2]]);
  t.same(lists("row"), [[0, 1], [2]]);
  t.same([...axes.numbers("token")!], [0, 0, 1, 1, 2]);
  t.equal(axes.numbers("embed"), undefined);
  t.end();
});

t.test("tokens follow the table of their sequences in every run", (t) => {
  const plan = {
    mesh: [{ name: "ep", size: 2 }],
    axes: {
      sequence: { size: 3 },
      "sequence/ep": { size: 3, of: "sequence", over: ["ep"], table: "cyclic" },
      "token/ep": {
        size: 8,
        dynamic: true,
        of: "token",
        over: ["ep"],
        assignment: {
          by: "items",
          input: "sequence",
          of: "sequence/ep",
          each: 2,
        },
      },
    },
  } as unknown as Plan;
  const lasting = lastingAxes();
  const long = Int32Array.of(1, 1, 1, 1, 1);
  t.throws(
    () =>
      assignAxes(plan, new Map([["token", 5]]), {
        sequence: { dtype: "i32", shape: [5], data: long },
      }).local("token/ep", 1),
    {
      name: "DataError",
      message:
        "Cannot assign axis 'token/ep' to ranks: group rank 1 has 5 items, and room for 4. Give each item of 'sequence/ep' at most 2",
    },
  );
  for (
    const [sequence, tokens] of [
      [[0, 1, 2, 0], [[0, 2, 3], [1]]],
      [[1, 0], [[1], [0]]],
    ] as const
  ) {
    const data = Int32Array.from(sequence);
    const axes = assignAxes(
      plan,
      new Map([["token", data.length]]),
      { sequence: { dtype: "i32", shape: [data.length], data } },
      lasting,
    );
    t.same([0, 1].map((rank) => [...axes.local("token/ep", rank)!]), tokens);
    t.same([...axes.numbers("sequence/ep")!], [0, 0, 1]);
  }
  t.end();
});

t.test("assignSequences() assigns every item once, with complete sequences, in order", (t) => {
  fc.assert(
    fc.property(
      fc.array(fc.nat(9), { maxLength: 60 }),
      fc.integer({ min: 1, max: 5 }),
      (sequences, parts) => {
        const rankOf = new Map<number, number>();
        const first = assignSequences(sequences, parts, rankOf);
        const again = assignSequences(sequences, parts, rankOf);
        const all = first.flatMap((b) => [...b]).sort((a, b) => a - b);
        return all.every((item, i) => item === i) &&
          all.length === sequences.length &&
          first.every((b) => b.every((x, i) => i === 0 || b[i - 1]! < x)) &&
          first.every((b, p) =>
            b.every((i) => rankOf.get(sequences[i]!) === p)
          ) &&
          JSON.stringify(first) === JSON.stringify(again);
      },
    ),
  );
  t.end();
});

t.test("forEachRun() splits and joins a tensor without loss", (t) => {
  fc.assert(
    fc.property(
      fc.nat(8),
      fc.integer({ min: 1, max: 3 }),
      fc.nat(3),
      fc.integer({ min: 1, max: 3 }),
      (rows, parts, inner, extra) => {
        const global = Array.from({ length: rows * 2 * inner }, (_, i) => i);
        const joined = new Array<number>(global.length).fill(-1);
        for (const local of assignBlocks(rows, parts)) {
          const axes = [
            { length: rows, local, room: rows },
            { length: 2, local: undefined, room: 2 },
            { length: inner, local: undefined, room: inner + extra - 1 },
          ];
          const part = new Array<number>(localSpan(axes)).fill(-2);
          forEachRun(axes, (g, l, n) => {
            for (let i = 0; i < n; i++) part[l + i] = global[g + i]!;
          });
          forEachRun(axes, (g, l, n) => {
            for (let i = 0; i < n; i++) joined[g + i] = part[l + i]!;
          });
        }
        return JSON.stringify(joined) === JSON.stringify(global);
      },
    ),
  );
  t.end();
});

t.test("forEachRun() merges consecutive items", (t) => {
  const runs: number[][] = [];
  const axes = [
    { length: 2, local: undefined, room: 2 },
    { length: 5, local: Int32Array.of(0, 1, 3), room: 4 },
    { length: 2, local: undefined, room: 2 },
  ];
  forEachRun(axes, (...run) => runs.push(run));
  t.strictSame(runs, [[0, 0, 4], [6, 4, 2], [10, 8, 4], [16, 12, 2]]);
  runs.length = 0;
  const none = { length: 5, local: new Int32Array(), room: 0 };
  forEachRun([axes[0]!, none], (...run) => runs.push(run));
  t.strictSame(runs, []);
  t.end();
});
