/** A merged kernel computes the same as its parts. */

import fc from "fast-check";
import t from "tap";
import {
  bindings,
  kernelOf,
  type KernelText,
  lengthAt,
  wgsl,
} from "../compiler/kernels/kernel.ts";
import { LENGTHS } from "../compiler/passes/lower/context.ts";
import { lengthsBinder } from "../compiler/passes/share_inputs.ts";
import {
  type Launched,
  type Merged,
  mergedParts,
  mergeKernels,
} from "../spec/kernel/merge.ts";
import { f32, store, u32 } from "../spec/kernel/build.ts";
import { GRID_LIMIT } from "../spec/kernel/make.ts";
import { sharedBody } from "../spec/kernel/shared_body.ts";
import { vectorWidths } from "../spec/kernel/vectors.ts";
import { evaluateSize, formatSize, type Size } from "../spec/size.ts";
import { interpretKernel, type Words } from "./helpers/interpret_kernel.ts";
import { runWasm } from "./helpers/run_wasm.ts";
import { holdsFor } from "./helpers/seed.ts";

const PLACE = { buffer: "lengths of axes", counts: ["token"] };
const TOKENS: Size = { count: "token" };
/** Numbers of rows and of pairs of rows, which are never more. */
const [ROWS, PAIRS] = [1, 2].map((n): Size => ({ ceilDiv: [TOKENS, n] })) as [
  Size,
  Size,
];

/** A kernel with a workgroup for each row of `x` and half: y = the sum over lanes, plus `added`. */
function sums(
  added: number,
  { x, y, grid, lanes = 4 }: {
    readonly x: string;
    readonly y: string;
    readonly grid: readonly [Size, Size, Size];
    readonly lanes?: number;
  },
): Launched {
  const kernel = kernelOf({
    name: `sums${added}`,
    workgroupSize: lanes,
    bindings: bindings({ x: "u32" }, { y: "u32" }),
    body: wgsl`
      var<workgroup> all: array<u32, ${4 + added}>;
      let place = group.x * 2 + group.y;
      all[lane] = x[place * 4 + lane];
      workgroupBarrier();
      if (group.x < ${lengthAt(0)} && lane == 0) {
        var sum = ${added}u;
        for (var l = 0u; l < 4; l++) { sum += all[l]; }
        y[place] = sum;
      }`,
  });
  return {
    kernel,
    bindings: { x, y, lengths: PLACE.buffer },
    workgroups: grid,
  };
}

/** Runs launches; returns the contents of all buffers. */
function run(
  launches: readonly (Omit<Launched, "workgroups"> & {
    readonly workgroups: readonly [number, number, number];
  })[],
  by: typeof interpretKernel = interpretKernel,
): { readonly [buffer: string]: Words } {
  const memory: { readonly [buffer: string]: Words } = {
    x: Uint32Array.from({ length: 24 }, (_, i) => 2 ** (i % 12) + i),
    y: new Uint32Array(6),
    z: new Uint32Array(6),
    w: new Uint32Array(6),
    [PLACE.buffer]: Uint32Array.of(3),
  };
  for (const { kernel, bindings, workgroups } of launches) {
    const bound = Object.entries(bindings)
      .map(([name, buffer]) => [name, memory[buffer]!] as const);
    by(kernel, Object.fromEntries(bound), workgroups);
  }
  return memory;
}

t.test("each part has its workgroups, its bindings and its memory", (t) => {
  const parts = [
    sums(1, { x: "x", y: "y", grid: [ROWS, 2, 1] }),
    // Half as many rows: this part ends before the others.
    sums(2, { x: "x", y: "z", grid: [PAIRS, 2, 1] }),
    sums(3, { x: "x", y: "w", grid: [ROWS, 1, 1] }),
  ];
  const merged = mergeKernels(parts, PLACE)!;
  t.same(merged.workgroups, [ROWS, 5, 1]);
  t.same(merged.kernel.shared, [
    { name: "shared_u321", type: "u32", length: 7 },
  ]);
  t.same(
    Object.values(merged.bindings).toSorted(),
    [PLACE.buffer, "w", "x", "y", "z"],
    "a buffer is bound once",
  );
  const kernel = { ...merged.kernel, body: merged.body() };
  t.same(mergedParts(kernel).map(({ end }) => end), [2, 4, undefined]);
  t.same(mergedParts(parts[0]!.kernel).map(({ end }) => end), [undefined]);
  const { bindings } = merged;
  const launches = [{ kernel, bindings, workgroups: [3, 5, 1] as const }];
  const together = run(launches);
  const rows = [3, 2, 3];
  const apart = run(parts.map((part, i) => ({
    ...part,
    workgroups: [rows[i]!, i === 2 ? 1 : 2, 1],
  })));
  t.same(together, apart);
  const byWasm: typeof interpretKernel = (kernel, bound, groups) =>
    runWasm(kernel, bound as { [name: string]: Uint32Array }, groups);
  t.same(run(launches, byWasm), apart, "one function per part");
  const short = [{ kernel, bindings, workgroups: [3, 3, 1] as const }];
  t.same(run(short, byWasm), run(short), "a grid may end in a part");
  t.ok(apart["z"]![3]! > 0 && apart["z"]![4] === 0, "a part is shorter");
  t.end();
});

t.test("parts load elements of a buffer that another loads as vectors", (t) => {
  const part = (y: string, body: KernelText): Launched => ({
    kernel: kernelOf({
      name: `of_${y}`,
      workgroupSize: 6,
      bindings: bindings({ x: "u32" }, { y: "u32" }),
      body,
    }),
    bindings: { x: "x", y },
    workgroups: [1, 1, 1],
  });
  const pairs = (y: string) =>
    part(y, wgsl`let (a, b) = vec2(x)[lane]; y[lane] = a * 3 + b;`);
  const others = [
    part("z", wgsl`let (a, b, c, d) = vec4(x)[lane]; y[lane] = a + b * c + d;`),
    part("z", wgsl`y[lane] = x[lane + 1];`),
  ];
  for (const other of others) {
    const parts = [pairs("y"), other];
    const { bindings, ...merged } = mergeKernels(parts, PLACE)!;
    const kernel = { ...merged.kernel, body: merged.body() };
    t.equal(vectorWidths(kernel).size, 0, "no vectors");
    const apart = run(
      parts.map((part) => ({ ...part, workgroups: [1, 1, 1] })),
    );
    t.same(run([{ kernel, bindings, workgroups: [1, 2, 1] }]), apart);
  }
  const { kernel, body } = mergeKernels([pairs("y"), pairs("z")], PLACE)!;
  t.same(
    [...vectorWidths({ ...kernel, body: body() }).values()],
    [2],
    "vectors of one width remain",
  );
  t.end();
});

t.test("lengths and the inputs after them share a binding", (t) => {
  const kernel = kernelOf({
    name: "shift",
    workgroupSize: 4,
    bindings: bindings({ from: "i32", x: "u32", ids: "u32" }, { y: "i32" }),
    body: wgsl`
      if (lane < ${lengthAt(0)}) {
        y[lane] = from[lane] - i32(x[ids[lane]]);
      }`,
  });
  const [from, ids] = [[-5, 7, 1], [2, 0, 1]];
  const memory = (lengths: readonly number[]): { [buffer: string]: Words } => ({
    [LENGTHS]: Uint32Array.from(lengths),
    from: Uint32Array.from(from),
    ids: Uint32Array.from(ids),
    x: Uint32Array.of(10, 20, 30),
    y: new Uint32Array(4),
  });
  const bind = lengthsBinder(new Map([["from", 8], ["ids", 20]]));
  const apart: Launched = {
    kernel,
    workgroups: [1, 1, 1],
    bindings: {
      from: "from",
      x: "x",
      ids: "ids",
      y: "y",
      lengths: LENGTHS,
    },
  };
  const packed = bind(apart);
  t.same(Object.values(packed.bindings).toSorted(), [LENGTHS, "x", "y"]);
  const results = [apart, packed].map(({ kernel, bindings }) => {
    const of = memory(kernel === apart.kernel ? [3] : [3, 0, ...from, ...ids]);
    const bound = Object.entries(bindings).map(([name, buffer]) =>
      [name, of[buffer]!] as const
    );
    interpretKernel(kernel, Object.fromEntries(bound), [1, 1, 1]);
    return [...Int32Array.from(of["y"]!)];
  });
  t.same(results, [[-35, -3, -19, 0], [-35, -3, -19, 0]]);
  const alone = { ...apart, bindings: { ...apart.bindings, from: "x" } };
  t.notOk(
    Object.values(bind(alone).bindings).includes("ids"),
    "other buffers stay bound",
  );
  t.end();
});

t.test("merged bodies of the same parts differ only if their frames do", (t) => {
  const grid = (height: number, size: Size = ROWS): Launched["workgroups"] => [
    size,
    height,
    1,
  ];
  const first = sums(1, { x: "x", y: "y", grid: grid(2) });
  const shorter = { x: "x", y: "z", grid: grid(2, PAIRS) };
  const variants = [
    mergeKernels([first, sums(2, shorter)], PLACE),
    mergeKernels([first, sums(2, { ...shorter, grid: grid(2) })], PLACE),
    mergeKernels([first, sums(2, { ...shorter, x: "w" })], PLACE),
    mergeKernels(
      [sums(1, { x: "x", y: "y", grid: grid(1) }), sums(2, shorter)],
      PLACE,
    ),
    mergeKernels([first, sums(2, shorter)], {
      ...PLACE,
      counts: ["row", ...PLACE.counts],
    }),
  ].map((merged) => merged!);
  const distinct = (of: (merged: Merged) => unknown) =>
    new Set(variants.map((merged) => JSON.stringify(of(merged)))).size;
  t.equal(distinct(({ body }) => body()), variants.length);
  t.equal(distinct(({ frame }) => frame), variants.length);
  t.end();
});

t.test("incompatible launches are not merged", (t) => {
  const first = sums(1, { x: "x", y: "y", grid: [TOKENS, 2, 1] });
  const merged = (next: Launched) => mergeKernels([first, next], PLACE);
  const grid = first.workgroups;
  t.ok(
    merged(sums(2, { x: "x", y: "z", grid })),
    "compatible launches are merged",
  );
  const others: { readonly [why: string]: Launched } = {
    "a buffer that both write": sums(2, { x: "x", y: "y", grid }),
    "a buffer that one writes": sums(2, { x: "y", y: "z", grid }),
    "other workgroups": sums(2, { x: "x", y: "z", grid, lanes: 8 }),
    "a grid with a third axis": sums(2, {
      x: "x",
      y: "z",
      grid: [TOKENS, 1, 2],
    }),
    "a dynamic height": sums(2, {
      x: "x",
      y: "z",
      grid: [2, TOKENS, 1],
    }),
    "a larger height than every device has": sums(2, {
      x: "x",
      y: "z",
      grid: [TOKENS, GRID_LIMIT - 1, 1],
    }),
    "incomparable widths": sums(2, {
      x: "x",
      y: "z",
      grid: [{ count: "row" }, 1, 1],
    }),
  };
  for (const [why, next] of Object.entries(others)) {
    t.equal(merged(next), undefined, why);
  }
  t.end();
});

/** The width of a merged launch of two widths. Undefined: neither is known to be larger. */
function mergedWidth(
  [a, b]: readonly [Size, Size],
  uneven = false,
): Size | undefined {
  return mergeKernels([
    sums(1, { x: "x", y: "y", grid: [a, 1, 1] }),
    sums(2, { x: "x", y: "z", grid: [b, 1, 1] }),
  ], { ...PLACE, uneven })?.workgroups[0];
}

t.test("a merged launch has the larger width", (t) => {
  const times = (by: number): Size => ({ mul: [TOKENS, by] });
  const above = (limit: number, size: Size): Size => ({
    above: [TOKENS, limit, size],
  });
  const others: Size = { ceilDiv: [times(3), 2] };
  const pairs: readonly [smaller: Size, larger: Size, uneven?: boolean][] = [
    [3, 5],
    [TOKENS, times(3)],
    [times(2), times(3)],
    [PAIRS, ROWS],
    [above(4, times(2)), above(4, times(3))],
    [PAIRS, others, true],
  ];
  for (const [smaller, larger, uneven] of pairs) {
    const name = `${formatSize(smaller)} and ${formatSize(larger)}`;
    t.equal(mergedWidth([smaller, larger], uneven), larger, name);
    t.equal(mergedWidth([larger, smaller], uneven), larger, `${name} swapped`);
  }
  const incomparable: readonly [Size, Size][] = [
    [TOKENS, 5],
    [TOKENS, { count: "row" }],
    // Of different lengths of the axis, other ones are larger.
    [above(4, TOKENS), above(5, TOKENS)],
    [above(4, TOKENS), PAIRS],
    // The same grid only if workgroups may be idle.
    [PAIRS, others],
  ];
  for (const pair of incomparable) {
    t.equal(mergedWidth(pair), undefined, pair.map(formatSize).join(" and "));
  }
  t.end();
});

t.test("no part is wider than a merged launch", async (t) => {
  const number = fc.integer({ min: 1, max: 4 });
  const { size } = fc.letrec<{ size: Size }>((tie) => ({
    size: fc.oneof(
      { maxDepth: 3, depthSize: "large" },
      number,
      fc.constant(TOKENS),
      fc.array(tie("size"), { minLength: 1, maxLength: 3 })
        .map((mul): Size => ({ mul })),
      fc.tuple(tie("size"), number).map((ceilDiv): Size => ({ ceilDiv })),
      fc.tuple(fc.constant(TOKENS), number, tie("size"))
        .map((above): Size => ({ above })),
      fc.tuple(fc.constant(TOKENS), number, tie("size"))
        .map((upTo): Size => ({ upTo })),
    ),
  }));
  let merged = 0;
  await holdsFor(t, fc.tuple(size, size, fc.boolean()), {
    check: ([a, b, uneven]) => {
      const width = mergedWidth([a, b], uneven);
      if (width === undefined) return Promise.resolve();
      merged++;
      for (let tokens = 0; tokens < 12; tokens++) {
        const [most, ...parts] = [width, a, b].map((of) =>
          evaluateSize(of, () => tokens)
        ) as [number, number, number];
        t.equal(most, Math.max(...parts), `${tokens} tokens`);
      }
      return Promise.resolve();
    },
    runs: 300,
  });
  t.ok(merged > 0, "some widths are comparable");
});

t.test("equal bodies are shared", (t) => {
  const body = (binding = "first", value = 0) => [
    store(binding, u32(0), f32(value)),
  ];
  const shared = sharedBody(body());
  t.equal(sharedBody(body()), shared);
  // The hash of a name uses its ends and its length.
  for (const other of [body("fiest"), body("first", -0), body("first", 1)]) {
    t.not(sharedBody(other).number, shared.number);
    t.equal(sharedBody(other).body, other);
  }
  t.end();
});
