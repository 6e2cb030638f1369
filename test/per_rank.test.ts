/**
 * Values that differ by rank: formulas equal the list of all ranks, and their size is independent of the rank count.
 */

import fc from "fast-check";
import t from "tap";
import { groupOf, groupRankOf, type Mesh, rankCount } from "../spec/mesh.ts";
import {
  dataPerRank,
  mapRanks,
  maxOverRanks,
  onRank,
  type PerRank,
  perRank,
  ranksGiven,
  sumPerRank,
  wordsOn,
} from "../spec/per_rank.ts";

/** Numbers of 12 ranks, with and without repetition and blocks. */
const LISTS = fc.record({
  every: fc.constantFrom(1, 2, 3, 4, 6),
  period: fc.constantFrom(1, 2, 3, 4, 6, 12),
  values: fc.array(fc.nat(2), { minLength: 12, maxLength: 12 }),
}).map(({ every, period, values }) =>
  Array.from(
    { length: 12 },
    (_, rank) => values[Math.floor(rank / every) % period]!,
  )
);

const expand = (value: PerRank) =>
  Array.from({ length: 12 }, (_, rank) => onRank(value, rank));

t.test("perRank() gives each rank its value of the list", (t) => {
  fc.assert(fc.property(LISTS, (list) => {
    const value = perRank(list);
    t.same(expand(value), list);
    t.equal(12 % ranksGiven(value), 0);
    t.equal(maxOverRanks(value), Math.max(...list));
    // The form depends only on the numbers.
    t.same(perRank(expand(value)), value);
  }));
  t.end();
});

t.test("mapRanks() and sumPerRank() compute on every rank", (t) => {
  fc.assert(fc.property(fc.array(LISTS, { minLength: 1 }), (lists) => {
    const values = lists.map(perRank);
    const sums = Array.from(
      { length: 12 },
      (_, rank) => lists.reduce((n, list) => n + list[rank]!, 0),
    );
    t.same(expand(sumPerRank(values)), sums);
    const sum = (numbers: readonly number[]) =>
      numbers.reduce((a, b) => a + b, 0);
    t.same(mapRanks(values, sum), perRank(sums));
  }));
  t.end();
});

t.test("dataPerRank() gives every rank its words", (t) => {
  fc.assert(fc.property(LISTS, (list) => {
    const words = list.map((n) => [n, n + 1]);
    const data = dataPerRank(words);
    words.forEach((wanted, rank) =>
      t.same(wordsOn(data, { mesh: [], rank }), wanted)
    );
  }));
  t.end();
});

t.test("blocks of experts are two runs on any number of ranks", (t) => {
  const held = Array.from({ length: 1024 }, (_, rank) => rank < 256 ? 1 : 0);
  t.same(perRank(held), { every: 256, runs: [[1, 1], [3, 0]] });
  const twice = Array.from({ length: 64 }, (_, rank) => rank % 32 < 8 ? 2 : 1);
  t.same(perRank(twice), { every: 8, runs: [[1, 2], [3, 1]] });
  t.end();
});

t.test("groupOf() lists the ranks of a group by group rank", (t) => {
  const mesh: Mesh = [
    { name: "a", size: 2 },
    { name: "b", size: 3 },
    { name: "c", size: 2 },
  ];
  for (const over of [["a"], ["c", "a"], ["b"], ["a", "b", "c"], []]) {
    const rest = ["a", "b", "c"].filter((name) => !over.includes(name));
    for (let rank = 0; rank < rankCount(mesh); rank++) {
      const group = groupOf(mesh, rank, over);
      t.same(group.map((r) => groupRankOf(mesh, r, over)), [...group.keys()]);
      const ofRank = groupRankOf(mesh, rank, rest);
      t.ok(group.every((r) => groupRankOf(mesh, r, rest) === ofRank));
      t.equal(new Set(group).size, group.length);
      t.ok(group.includes(rank));
    }
  }
  t.end();
});
