/** Attention against plain code. */
// needs: cpu, gpu

import fc from "fast-check";
import { attention, lengthAt } from "../compiler/kernels/mod.ts";
import {
  NEW_SQUARES,
  type NewVector,
} from "../compiler/kernels/attention/new_token.ts";
import {
  attentionMerge,
  attentionParts,
} from "../compiler/kernels/attention/split.ts";
import {
  bindings,
  kernelOf,
  type KernelText,
  wgsl,
} from "../compiler/kernels/kernel.ts";
import { rmsScale } from "../compiler/kernels/rows.ts";
import {
  attentionGrid,
  keyBlocks,
  type QueryTile,
  splitGrids,
  splitTile,
} from "../compiler/tuning/queries.ts";
import { add, f32, let_, load, local, mul, u32 } from "../spec/kernel/build.ts";
import { narrow, widen } from "../runtime/half.ts";
import type { HalfDType } from "../spec/dtype.ts";
import { attentionOf } from "./helpers/kernel_reference.ts";
import {
  bits,
  close,
  holds,
  testKernels,
  type Words,
  workgroups,
} from "./helpers/run_kernel.ts";
import { randoms } from "./helpers/random_values.ts";

const SHAPE = { heads: 4, kvHeads: 2, dim: 20, context: 80, scale: 0.25 };
const SEQUENCES = 3;

testKernels(
  "attention() reads keys of its sequence up to its position",
  async (t, target) => {
    const { heads, kvHeads, dim, context } = SHAPE;
    const row = heads * dim;
    const keys = randoms(SEQUENCES * context * kvHeads * dim, 1);
    const values = randoms(keys.length, 2);
    const token = fc.record({
      sequence: fc.nat(SEQUENCES - 1),
      position: fc.constantFrom(0, 1, 30, 31, 32, 33, 63, 64, 79),
    });
    // Tokens of one sequence may share a workgroup.
    const batch = fc.oneof(
      fc.array(token, { maxLength: 6 }),
      fc.array(token, { maxLength: 9 }).map((tokens) =>
        tokens.map(({ position }) => ({ sequence: 1, position }))
      ),
    );
    const cases = fc.record({
      // Several batches per kernel: a software GPU compiles a kernel for seconds.
      batches: fc.array(batch, { minLength: 2, maxLength: 2 }),
      window: fc.constantFrom(undefined, 1, 40),
      chunk: fc.constantFrom(undefined, 20, 32),
      sinks: fc.boolean(),
      // Separate values, or the first elements of the keys.
      shared: fc.boolean(),
      queries: fc.constantFrom(2, 4, 6, 16),
      seed: fc.nat(1000),
    });
    await holds(
      cases,
      async ({ batches, window, chunk, seed, queries, ...how }) => {
        const valueDim = how.shared ? 12 : dim;
        const sinks = randoms(heads, 5).map((x) => 8 * x);
        const options = (queries: number) => ({
          ...SHAPE,
          ...(window ? { window } : {}),
          ...(chunk ? { chunk } : {}),
          ...how,
          valueDim,
          name: "attention",
          tokens: lengthAt(0),
          queries,
        });
        const operands = (
          q: Float32Array,
          tokens: { sequence: number; position: number }[],
        ) => ({
          q,
          keys,
          values,
          sinks,
          sequence: Int32Array.from(tokens, (t) => t.sequence),
          position: Int32Array.from(tokens, (t) => t.position),
          y: new Float32Array(q.length / dim * valueDim),
          lengths: Uint32Array.of(tokens.length),
        });
        const run = async (
          q: Float32Array,
          tokens: { sequence: number; position: number }[],
          queries = 1,
        ) => {
          const { y } = await target.run(
            attention(options(queries)),
            operands(q, tokens),
            workgroups(
              attentionGrid({ ...SHAPE, valueDim, queries }, tokens.length),
            ),
          );
          return y!;
        };
        /** Runs attention split over blocks of keys. */
        const runSplit = async (
          q: Float32Array,
          tokens: { sequence: number; position: number }[],
        ) => {
          const shape = options(1);
          const grids = splitGrids(shape, tokens.length);
          const blocks = tokens.length * heads * keyBlocks(SHAPE);
          const inputs = operands(q, tokens);
          const { tops, sums } = await target.run(
            attentionParts(shape, splitTile(shape)),
            {
              ...inputs,
              tops: new Float32Array(blocks * 2),
              sums: new Float32Array(blocks * valueDim),
            },
            workgroups(grids.parts),
          );
          const { y } = await target.run(
            attentionMerge(shape),
            { ...inputs, tops: tops!, sums: sums! },
            workgroups(grids.merge),
          );
          return y!;
        };
        for (const tokens of batches) {
          const q = randoms(tokens.length * row, seed).map((x) => 8 * x);
          const y = await run(q, tokens);
          const expected = tokens.flatMap(({ sequence, position }, t) =>
            Array.from({ length: heads }, (_, h) => {
              const first = Math.max(
                0,
                window ? position - window + 1 : 0,
                chunk ? position - position % chunk : 0,
              );
              const rows = (x: Float32Array) =>
                Array.from({ length: position + 1 - first }, (_, i) => {
                  const entry = sequence * context + first + i;
                  const start = (entry * kvHeads + Math.floor(h / 2)) * dim;
                  return [...x.subarray(start, start + dim)];
                });
              const query = [
                ...q.subarray((t * heads + h) * dim, (t * heads + h + 1) * dim),
              ];
              return attentionOf(query, rows(keys), {
                values: rows(how.shared ? keys : values),
                scale: SHAPE.scale,
                ...how.sinks ? { sink: sinks[h]! } : {},
              }).slice(0, valueDim);
            }).flat()
          );
          close(t, y, expected);
          t.same(bits(await run(q, tokens, queries)), bits(y), "together");
          t.same(bits(await runSplit(q, tokens)), bits(y), "split over keys");
          // Neighbours do not matter: the last token alone has the same bits.
          if (tokens.length > 0) {
            const alone = await run(q.slice(-row), tokens.slice(-1));
            t.same(bits(alone), bits(y.slice(-heads * valueDim)));
          }
        }
      },
      5,
    );
  },
);

testKernels(
  "teams that share a block of keys have the bits of one",
  async (t, target) => {
    const cases = [
      { stored: "f32", dim: 128, valueDim: 200, window: 40 },
      { stored: "f32", dim: 288, valueDim: 256, shared: true },
      { stored: "bf16", dim: 160, valueDim: 256 },
    ] as const;
    for (const { stored, ...how } of cases) {
      const shape = {
        ...SHAPE,
        ...how,
        name: "attention",
        stored,
        tokens: lengthAt(0),
      };
      const { heads, kvHeads, context, dim, valueDim } = shape;
      const tile = splitTile(shape);
      t.ok(tile.teams);
      const positions = [79, 32, 0];
      const cacheOf = (width: number, seed: number) => {
        const x = randoms(SEQUENCES * context * kvHeads * width, seed);
        return stored === "f32"
          ? x
          : new Uint32Array(narrow(stored, x).slice().buffer);
      };
      const rows = positions.length * heads * keyBlocks(shape);
      const run = (tile: QueryTile) =>
        target.run(attentionParts(shape, tile), {
          q: randoms(positions.length * heads * dim, 1).map((x) => 8 * x),
          keys: cacheOf(dim, 2),
          values: cacheOf(valueDim, 3),
          sequence: Int32Array.of(2, 0, 1),
          position: Int32Array.from(positions),
          lengths: Uint32Array.of(positions.length),
          tops: new Float32Array(rows * 2),
          sums: new Float32Array(rows * valueDim),
        }, workgroups(splitGrids(shape, positions.length).parts));
      const [found, wanted] = [
        await run(tile),
        await run({ ...tile, teams: 1 }),
      ];
      for (const name of ["tops", "sums"]) {
        t.same(bits(found[name]!), bits(wanted[name]!), `${stored} ${name}`);
      }
    }
  },
);

testKernels(
  "blocks of keys compute the query and key of one token with the same bits",
  async (t, target) => {
    const cases = [
      // Teams of lanes, and norms.
      { dim: 128, valueDim: 200, epsilon: 1e-6, positions: [0, 40, 79] },
      { dim: 64, valueDim: 64, window: 40, context: 97, positions: [32, 96] },
      { dim: 64, valueDim: 64, context: 96, size: 32, positions: [0, 64] },
      { dim: 64, valueDim: 64, context: 96, size: 6, positions: [64] },
    ] as const;
    for (const { positions, ...how } of cases) {
      const size = "size" in how ? how.size : undefined;
      const epsilon = "epsilon" in how ? how.epsilon : undefined;
      const shape = {
        ...SHAPE,
        ...how,
        heads: 8,
        name: "attention",
        tokens: lengthAt(0),
        atOnce: 16,
        ...size === undefined ? {} : { pages: { size } },
      };
      const { heads, kvHeads, context, dim, valueDim } = shape;
      // Pages are in reverse order; without pages, a sequence is one.
      const page = size ?? context;
      const perSequence = context / page;
      const pages = Int32Array.from(
        { length: SEQUENCES * perSequence },
        (_, i, count = SEQUENCES * perSequence) => count - 1 - i,
      );
      const tile = splitTile(shape);
      t.equal(tile.teams !== undefined, epsilon !== undefined);
      const x = randoms((heads + kvHeads) * dim, 1).map((x) => 8 * x);
      const valueOf = (x: KernelText, scale: string) =>
        epsilon === undefined
          ? wgsl`2.0 * ${x}`
          : wgsl`0.5 * (${x} * ${scale})`;
      const stored = kernelOf({
        name: "stored",
        workgroupSize: dim,
        bindings: bindings({ x: "f32 [i]" }, { y: "f32 [i]" }),
        body: wgsl`
          let row = group.x;
          ${
          epsilon !== undefined && rmsScale({
            length: dim,
            epsilon,
            lanes: dim,
            load: (row, i) => load("x", add(mul(row, u32(dim)), i)),
          })
        }
          let i = row * ${dim} + lane;
          y[i] = ${valueOf(wgsl`x[i]`, "scale")};`,
      });
      const { y } = await target.run(
        stored,
        { x, y: new Float32Array(x.length) },
        [heads + kvHeads, 1, 1],
      );
      const keys = randoms(SEQUENCES * context * kvHeads * dim, 2);
      const values = randoms(SEQUENCES * context * kvHeads * valueDim, 3);
      const vectorOf = (x: string): NewVector => ({
        block: NEW_SQUARES.map((name, n) =>
          wgsl`let ${name} = ${x}[new_head * ${dim} + (new_first + ${n})];`
        ),
        element: [
          let_(
            "of_head",
            load(
              x,
              add(
                mul(local("new_head", "u32"), u32(dim)),
                local("new_d", "u32"),
              ),
            ),
          ),
          let_(
            "new_element",
            epsilon === undefined ? mul(f32(2), local("of_head", "f32")) : mul(
              f32(0.5),
              mul(local("of_head", "f32"), local("new_scale", "f32")),
            ),
          ),
        ],
      });
      for (const position of positions) {
        const nth = size === undefined
          ? 1
          : pages[perSequence + Math.floor(position / page)]!;
        const at = (nth * page + position % page) * kvHeads * dim;
        const rows = heads * keyBlocks(shape);
        const common = {
          values,
          sequence: Int32Array.of(1),
          position: Int32Array.of(position),
          ...size === undefined ? {} : { pages },
          lengths: Uint32Array.of(1),
          tops: new Float32Array(rows * 2),
          sums: new Float32Array(rows * valueDim),
        };
        const written = keys.slice();
        written.set(y!.slice(heads * dim) as Float32Array, at);
        const wanted = await target.run(attentionParts(shape, tile), {
          ...common,
          q: y!.slice(0, heads * dim),
          keys: written,
        }, workgroups(splitGrids(shape, 1).parts));
        const found = await target.run(
          attentionParts(shape, tile, {
            bindings: bindings({
              values: "f32 [i]",
              sequence: "i32 [token]",
              position: "i32 [token]",
              pages: "i32 [sequence, block]",
              projected: "f32 [i]",
              projected_keys: "f32 [i]",
            }, { keys: "f32 [i]" }),
            ...epsilon === undefined ? {} : { epsilon },
            query: vectorOf("projected"),
            key: vectorOf("projected_keys"),
            store: wgsl`
              keys[${at} + new_head * ${dim} + new_d] = new_element;`,
          }),
          {
            ...common,
            projected: x.slice(0, heads * dim),
            projected_keys: x.slice(heads * dim),
            keys,
          },
          workgroups(splitGrids(shape, 1).parts),
        );
        t.same(bits(found["keys"]!), bits(written), "the cache");
        for (const name of ["tops", "sums"]) {
          t.same(
            bits(found[name]!),
            bits(wanted[name]!),
            `${position} ${name}`,
          );
        }
      }
    }
  },
);

testKernels(
  "attention() over a 16-bit cache has the bits of an f32 cache",
  async (t, target) => {
    const tokens = [[0, 0], [1, 37], [1, 38]] as const;
    for (
      const [stored, dim, how] of [
        ["bf16", 64, { shared: false, valueDim: 64 }],
        ["f16", 96, { shared: true, valueDim: 64 }],
      ] as const
    ) {
      const shape = { ...SHAPE, dim, ...how, queries: 2 };
      const { heads, kvHeads, context } = shape;
      const q = randoms(tokens.length * heads * dim, 3);
      const run = async (
        stored: "f32" | HalfDType,
        cache: { keys: Words; values: Words },
      ) => {
        const { y } = await target.run(
          attention({
            ...shape,
            name: "attention",
            stored,
            tokens: lengthAt(0),
            ...stored === "f32" ? {} : { atOnce: 16 },
          }),
          {
            q,
            ...cache,
            sequence: Int32Array.from(tokens, ([sequence]) => sequence),
            position: Int32Array.from(tokens, ([, position]) => position),
            y: new Float32Array(tokens.length * heads * how.valueDim),
            lengths: Uint32Array.of(tokens.length),
          },
          workgroups(attentionGrid(shape, tokens.length)),
        );
        return bits(y!);
      };
      const size = SEQUENCES * context * kvHeads;
      const [keys, values] = [dim, how.valueDim].map((width, i) =>
        narrow(stored, randoms(size * width, i + 1))
      );
      const words = (half: Uint16Array) => new Uint32Array(half.buffer);
      t.same(
        await run(stored, { keys: words(keys!), values: words(values!) }),
        await run("f32", {
          keys: widen(stored, keys!),
          values: widen(stored, values!),
        }),
        stored,
      );
    }
  },
);

testKernels(
  "attention() over head-major caches has the bits of other caches",
  async (t, target) => {
    const tokens = [[0, 0], [1, 37], [1, 38], [2, 79]] as const;
    const { heads, kvHeads, dim, context } = SHAPE;
    const q = randoms(tokens.length * heads * dim, 3);
    for (const size of [undefined, 4, 32]) {
      const within = size ?? context;
      // The last page of a sequence may be incomplete.
      const blocks = Math.ceil(context / within);
      const count = SEQUENCES * blocks;
      /** The vectors of keys or values, the last page first. */
      const cacheOf = (seed: number, headMajor: boolean) => {
        const from = randoms(count * within * kvHeads * dim, seed);
        const to = new Float32Array(from.length);
        for (let at = 0; at < from.length / dim; at++) {
          const [row, head] = [Math.floor(at / kvHeads), at % kvHeads];
          const [block, p] = [Math.floor(row / within), row % within];
          const page = size === undefined ? block : count - 1 - block;
          const index = headMajor
            ? (page * kvHeads + head) * within + p
            : (page * within + p) * kvHeads + head;
          to.set(from.subarray(at * dim, (at + 1) * dim), index * dim);
        }
        return to;
      };
      const run = async (queries: number, headMajor: boolean) => {
        const shape = { ...SHAPE, queries, headMajor };
        const { y } = await target.run(
          attention({
            ...shape,
            name: "attention",
            tokens: lengthAt(0),
            ...size === undefined ? {} : { pages: { size } },
          }),
          {
            q,
            keys: cacheOf(1, headMajor),
            values: cacheOf(2, headMajor),
            pages: Int32Array.from({ length: count }, (_, i) => count - 1 - i),
            sequence: Int32Array.from(tokens, ([sequence]) => sequence),
            position: Int32Array.from(tokens, ([, position]) => position),
            y: new Float32Array(q.length),
            lengths: Uint32Array.of(tokens.length),
          },
          workgroups(attentionGrid(shape, tokens.length)),
        );
        return bits(y!);
      };
      const wanted = await run(1, false);
      for (const queries of [1, 4]) {
        t.same(await run(queries, true), wanted, `${size} ${queries}`);
      }
    }
  },
);

testKernels(
  "attention() split over many blocks of keys merges them in order",
  async (t, target) => {
    // More blocks than lanes of the merging kernel.
    const shape = {
      name: "attention",
      heads: 2,
      kvHeads: 1,
      dim: 8,
      valueDim: 8,
      context: 2200,
      scale: 0.5,
      tokens: lengthAt(0),
    };
    const { heads, dim, context } = shape;
    const positions = [2199, 2047];
    const inputs = {
      q: randoms(positions.length * heads * dim, 1).map((x) => 8 * x),
      keys: randoms(context * dim, 2),
      values: randoms(context * dim, 3),
      sequence: Int32Array.of(0, 0),
      position: Int32Array.from(positions),
      y: new Float32Array(positions.length * heads * dim),
      lengths: Uint32Array.of(positions.length),
    };
    const unsplit = await target.run(
      attention(shape),
      inputs,
      workgroups(attentionGrid(shape, positions.length)),
    );
    const grids = splitGrids(shape, positions.length);
    const blocks = positions.length * heads * keyBlocks(shape);
    const { tops, sums } = await target.run(
      attentionParts(shape, splitTile(shape)),
      {
        ...inputs,
        tops: new Float32Array(blocks * 2),
        sums: new Float32Array(blocks * dim),
      },
      workgroups(grids.parts),
    );
    const { y } = await target.run(
      attentionMerge(shape),
      { ...inputs, tops: tops!, sums: sums! },
      workgroups(grids.merge),
    );
    t.same(bits(y!), bits(unsplit["y"]!));
  },
);
