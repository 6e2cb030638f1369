// Offsets in arenas: disjoint while live, aligned, deterministic, and equal for every layer.

import fc from "fast-check";
import t from "tap";
import { type LiveRange, packArenas } from "../compiler/passes/arena.ts";
import { STORAGE_ALIGNMENT } from "../spec/limits.ts";
import type { Facts } from "../spec/plan/facts.ts";
import { checkOverlap } from "../spec/verify/overlap.ts";

const STEPS = 40;
const LIMIT = 2 ** 14;

/** Live ranges over some steps. Sizes are often equal, as in models. */
function ranges(steps: number): fc.Arbitrary<LiveRange[]> {
  const bytes = fc.oneof(
    fc.constantFrom(4, 256, 1024, 4096),
    fc.integer({ min: 4, max: 9000 }),
  );
  const step = fc.nat(steps - 1);
  return fc.array(
    fc.tuple(bytes, step, step).map(([bytes, a, b]) => ({
      bytes,
      first: Math.min(a, b),
      last: Math.max(a, b),
    })),
    { maxLength: 60 },
  );
}

function aligned({ bytes }: LiveRange): number {
  return Math.ceil(bytes / STORAGE_ALIGNMENT) * STORAGE_ALIGNMENT;
}

/** Max bytes that are live at a step. */
function maxLiveBytes(all: readonly LiveRange[]): number {
  let max = 0;
  for (const { first } of all) {
    const live = all.filter((r) => r.first <= first && r.last >= first);
    max = Math.max(max, live.reduce((n, range) => n + aligned(range), 0));
  }
  return max;
}

/** Lengths of the arenas. */
function lengths(all: readonly LiveRange[], limit: number): number[] {
  const ends: number[] = [];
  packArenas(all, limit).forEach(({ arena, offset }, i) => {
    ends[arena] = Math.max(ends[arena] ?? 0, offset + aligned(all[i]!));
  });
  return ends;
}

t.test("buffers that are live at once do not overlap", (t) => {
  fc.assert(
    fc.property(
      ranges(STEPS),
      fc.constantFrom(LIMIT, 2 ** 30),
      (all, limit) => {
        const slots = packArenas(all, limit);
        if (slots.length !== all.length) return false;
        for (const [i, a] of all.entries()) {
          const [at, end] = [slots[i]!, slots[i]!.offset + a.bytes];
          if (
            at.offset < 0 || at.offset % STORAGE_ALIGNMENT !== 0
          ) return false;
          for (const [j, b] of all.entries()) {
            const other = slots[j]!;
            if (
              j < i && at.arena === other.arena &&
              a.first <= b.last && b.first <= a.last &&
              at.offset < other.offset + b.bytes && other.offset < end
            ) return false;
          }
        }
        return true;
      },
    ),
  );
  t.end();
});

t.test("arenas respect the limit; without a limit there is one", (t) => {
  fc.assert(
    fc.property(ranges(STEPS), (all) => {
      const many = lengths(all, LIMIT);
      const one = lengths(all, Infinity);
      return many.every((bytes) => bytes > 0 && bytes <= LIMIT) &&
        one.length <= 1 && (one[0] ?? 0) >= maxLiveBytes(all);
    }),
  );
  const long = { bytes: 2 * LIMIT, first: 0, last: 1 };
  const short = { bytes: 512, first: 0, last: 1 };
  t.same(packArenas([short, long], LIMIT), [
    { arena: 1, offset: 0 },
    { arena: 0, offset: 0 },
  ]);
  t.end();
});

t.test("repeated layers have the same offsets, independent of their number", (t) => {
  const count = 5;
  fc.assert(
    fc.property(ranges(12), (layer) => {
      const all = Array.from(
        { length: count },
        (_, i) =>
          layer.map((range) => ({
            ...range,
            first: range.first + 12 * i,
            last: range.last + 12 * i,
          })),
      ).flat();
      const one = packArenas(layer, Infinity);
      return packArenas(all, Infinity).every((slot, i) =>
        slot.offset === one[i % layer.length]!.offset
      );
    }),
  );
  t.end();
});

t.test("packArenas() also tries orders other than by size", (t) => {
  // By size, both ranges of 1,024 bytes start at 0, the long one of 768 above them, and the other above that.
  const all = [
    { bytes: 1024, first: 0, last: 2 },
    { bytes: 768, first: 0, last: 4 },
    { bytes: 768, first: 3, last: 5 },
    { bytes: 1024, first: 5, last: 5 },
  ];
  t.same(lengths(all, Infinity), [1792]);
  t.equal(maxLiveBytes(all), 1792);
  t.end();
});

/** Buffers at given offsets of two allocations, written at the first and read at the last step of their live ranges. */
function factsOf(
  placed: readonly (LiveRange & { allocation: number; offset: number })[],
): Facts {
  const buffers = placed.map((range, i) => ({
    name: `b${i}`,
    kind: "scratch",
    dtype: "u32",
    axes: [],
    ...range,
  }));
  const steps = Array.from({ length: STEPS }, (_, index) => ({
    index,
    name: `main[${index}]`,
    ranks: [0],
    step: { op: "copy" },
    reads: buffers.filter(({ last }) => last === index).map((b) => b.name),
    writes: buffers.filter(({ first }) => first === index).map((b) => b.name),
  }));
  return {
    plan: { allocations: [{ bytes: 2 ** 20 }, { bytes: 2 ** 20 }] },
    buffers: new Map(buffers.map((buffer) => [buffer.name, buffer])),
    programs: [{ program: { name: "main" }, steps }],
  } as unknown as Facts;
}

t.test("checkOverlap() finds the same as a comparison of all pairs", (t) => {
  const buffer = fc.record({
    range: ranges(STEPS).filter((all) => all.length > 0).map(([one]) => one!),
    allocation: fc.nat(1),
    place: fc.nat(40),
  });
  let [legal, illegal] = [0, 0];
  fc.assert(
    fc.property(fc.array(buffer, { maxLength: 8 }), (all) => {
      const placed = all.map(({ range, allocation, place }) => ({
        ...range,
        allocation,
        offset: STORAGE_ALIGNMENT * place,
      }));
      const overlaps = placed.some((a, i) =>
        placed.slice(0, i).some((b) =>
          a.allocation === b.allocation &&
          a.first <= b.last && b.first <= a.last &&
          a.offset < b.offset + b.bytes && b.offset < a.offset + a.bytes
        )
      );
      let reports = 0;
      checkOverlap(factsOf(placed), () => reports++);
      if (overlaps) illegal++;
      else legal++;
      return reports > 0 === overlaps;
    }),
    { numRuns: 300 },
  );
  t.ok(legal > 20 && illegal > 20, `${legal} legal, ${illegal} not`);
  t.end();
});
