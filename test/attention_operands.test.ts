/**
 * Attention with 16-bit operands whose scores rise from block to block of keys: the sums of a row are scaled, and those
 * of other rows do not change.
 */
// needs: cpu, gpu
// rotates with: compiler/kernels/attention/matrices.ts, spec/kernel/matrices.ts

import t from "tap";
import {
  attention,
  attentionMatrices,
  lengthAt,
} from "../compiler/kernels/mod.ts";
import type { AttentionOptions } from "../compiler/kernels/attention/block.ts";
import {
  attentionGrid,
  matrixQueries,
  matrixQueriesGrid,
} from "../compiler/tuning/mod.ts";
import { narrow } from "../runtime/half.ts";
import { roundF16 } from "../spec/half.ts";
import { range } from "../spec/range.ts";
import { sum } from "../spec/sum.ts";
import { printWgsl } from "../spec/kernel/wgsl/wgsl.ts";
import {
  bits,
  close,
  type KernelTarget,
  testKernels,
  type Words,
  workgroups,
} from "./helpers/run_kernel.ts";
import { randoms } from "./helpers/random_values.ts";

/** Bytes of workgroup memory for one block of keys at once, and for two. */
const MEMORY = 1 << 15, LARGE_MEMORY = 3 << 14;

const { fround } = Math;

/** Keys of a block, and the difference from the earlier largest score above which sums are scaled. */
const BLOCK = 64, MAX_ABOVE = 10;

/** The value of a query, one element per key, as `spec/numerics.md` defines it, with sums of exact numbers. */
function inOrder(
  scores: readonly number[],
  values: readonly number[],
  sink?: number,
): number {
  let top = sink ?? -Infinity;
  let [total, value] = [sink === undefined ? 0 : 1, 0];
  for (let start = 0; start < scores.length; start += BLOCK) {
    const block = scores.slice(start, start + BLOCK);
    const blockTop = Math.max(...block);
    if (blockTop > top + MAX_ABOVE) {
      const factor = Math.exp(top - blockTop);
      [total, value, top] = [total * factor, value * factor, blockTop];
    }
    const weights = block.map((score) => fround(Math.exp(score - top)));
    total += sum(weights);
    value += sum(weights.map((w, i) => roundF16(w) * values[start + i]!));
  }
  return value / total;
}

/** Options of attention, and an array for each of its operands. */
interface Inputs {
  readonly options: AttentionOptions;
  readonly q: Float32Array;
  readonly others: { readonly [binding: string]: Words };
}

/** Positions of tokens of one sequence. */
type Positions = readonly number[];

/** Runs attention with 16-bit operands, or with f32 ones, for tokens `from` to before `end`. */
async function results(
  target: KernelTarget,
  { options, q, others }: Inputs,
  { positions, memory = MEMORY, exact = false }: {
    /** All positions, from 0 on. Queries are those of the last ones. */
    readonly positions: Positions;
    readonly memory?: number;
    readonly exact?: boolean;
  },
): Promise<Float32Array> {
  const { heads, dim, valueDim = dim } = options;
  const [first] = positions as [number];
  const count = positions.length;
  const tile = matrixQueries(options, memory)!;
  const { y } = await target.run(
    exact ? attention(options) : attentionMatrices(options, tile),
    {
      ...others,
      q: q.slice(first * heads * dim, (first + count) * heads * dim),
      sequence: new Int32Array(count),
      position: Int32Array.from(positions),
      y: new Float32Array(count * heads * valueDim),
      lengths: Uint32Array.of(count),
    },
    workgroups(
      exact
        ? attentionGrid(options, count)
        : matrixQueriesGrid(options, { tile, tokens: count }),
    ),
  );
  return y as Float32Array;
}

/** By how much the score of each head rises at key 64, and again at key 128. */
const RISES = [0, 5, 9, 11, 200, -11, 10, 10.5];

testKernels(
  "attentionMatrices() scales sums if a score is larger by more than 10",
  async (t, target) => {
    // Two blocks of keys at once would need more memory than a software GPU has.
    const [dim, valueDim, context] = [48, 32, 192];
    const values = randoms(context * valueDim, 3).map(roundF16);
    const keys = new Float32Array(context * dim);
    // Scores: 0 of key 0, those that rise of keys 64 and 128, and -40 of all others.
    for (const key of range(context)) {
      if (key % BLOCK === 0) keys[key * dim] = key / BLOCK;
      else keys[key * dim + 1] = -40;
    }
    const q = new Float32Array(context * RISES.length * dim);
    for (const token of range(context)) {
      for (const [head, rise] of RISES.entries()) {
        q.set([2 * rise, 2], (token * RISES.length + head) * dim);
      }
    }
    for (const sink of [undefined, -3, 4, 15, 300]) {
      const options = {
        name: "attention",
        heads: RISES.length,
        kvHeads: 1,
        dim,
        valueDim,
        context,
        scale: 0.5,
        tokens: lengthAt(0),
        ...sink === undefined ? {} : { sinks: true },
      };
      const sinks = new Float32Array(RISES.length).fill(sink ?? 0);
      const found = await results(
        target,
        { options, q, others: { keys, values, sinks } },
        { positions: range(context).slice(100) },
      );
      const wanted = range(context).slice(100).flatMap((token) =>
        RISES.flatMap((rise) => {
          const seen = range(token + 1);
          const scores = seen.map((key) =>
            key % BLOCK === 0 ? rise * key / BLOCK : -40
          );
          return range(valueDim).map((d) =>
            inOrder(
              scores,
              seen.map((key) => values[key * valueDim + d]!),
              sink,
            )
          );
        })
      );
      close(t, found, wanted, 2 ** -17);
    }
  },
);

/** Inputs with exact scores in f16 and f32, which rise from block to block, for most rows by more than 10. */
function rising(how: Partial<AttentionOptions>, half: boolean): Inputs {
  const [heads, kvHeads, context] = [4, 2, 256];
  const dim = how.shared ? 80 : 48;
  const valueDim = 64;
  const whole = (count: number, seed: number) =>
    randoms(count, seed).map((x) => Math.round(8 * x));
  const keys = whole(context * kvHeads * dim, 1)
    .map((x, i) => x * (1 + Math.floor(i / (BLOCK * kvHeads * dim))) / 8);
  const values = randoms(context * kvHeads * valueDim, 2);
  const stored = (of: Float32Array) =>
    half ? new Uint32Array(narrow("f16", of).buffer) : of;
  return {
    options: {
      name: "attention",
      heads,
      kvHeads,
      dim,
      valueDim,
      context,
      scale: 0.5,
      tokens: lengthAt(0),
      ...how,
      ...half ? { stored: "f16", pages: { size: 32 } } : {},
    },
    q: whole(context * heads * dim, 3),
    others: {
      keys: stored(keys),
      ...how.shared ? {} : { values: stored(values) },
      sinks: randoms(heads, 4),
      pages: Int32Array.from({ length: 8 }, (_, n) => 3 * n % 8),
    },
  };
}

testKernels(
  "attentionMatrices() has the same bits for a prompt in pieces",
  async (t, target) => {
    const cases = [
      {},
      { window: 70 },
      { sinks: true },
      { shared: true },
    ];
    for (const [i, how] of cases.entries()) {
      const inputs = rising(how, i % 2 === 1);
      const positions = range(256);
      const all = await results(target, inputs, { positions });
      close(
        t,
        all,
        [...await results(target, inputs, { positions, exact: true })],
        2 ** -9,
      );
      const pieces = [];
      for (const [from, end] of [[0, 70], [70, 75], [75, 205], [205, 256]]) {
        const some = await results(target, inputs, {
          positions: positions.slice(from, end),
        });
        pieces.push(...some);
      }
      t.same(bits(Float32Array.from(pieces)), bits(all));
      // A software GPU has too little memory for two blocks.
      if (target.software) continue;
      const large = { positions, memory: LARGE_MEMORY };
      t.same(bits(await results(target, inputs, large)), bits(all));
    }
  },
);

/** Scaling of the first matrix by subgroups of 64 lanes: half of them at once. */
const IN_TURNS = `
          workgroupBarrier();
          let subgroup_scales = subgroupAny(factors[lane % 64u] != 1.0f);
          if (subgroup_lane == 0u) { subgroup_scaled[subgroup_number] = u32(subgroup_scales); }
          let subgroup_all = workgroupUniformLoad(&subgroup_scaled);
          if ((subgroup_all[0] | subgroup_all[1]) != 0u) {
            workgroupBarrier();
            if (subgroup_number / 1u == 0u) {
              subgroupMatrixStore<row_major>(&subgroup_results, (subgroup_number % 1u) * 256u, subgroup_sum0_0_0_0, 16u);
            }
            workgroupBarrier();
            if (subgroup_number / 1u == 0u) {
              subgroup_results[(subgroup_number % 1u) * 256u + 0u + subgroup_lane] *= factors[subgroup_row0 + subgroup_lane_row + 0u];
              subgroup_results[(subgroup_number % 1u) * 256u + 64u + subgroup_lane] *= factors[subgroup_row0 + subgroup_lane_row + 4u];
              subgroup_results[(subgroup_number % 1u) * 256u + 128u + subgroup_lane] *= factors[subgroup_row0 + subgroup_lane_row + 8u];
              subgroup_results[(subgroup_number % 1u) * 256u + 192u + subgroup_lane] *= factors[subgroup_row0 + subgroup_lane_row + 12u];
            }
            workgroupBarrier();
            if (subgroup_number / 1u == 0u) {
              subgroup_sum0_0_0_0 = subgroupMatrixLoad<subgroup_matrix_result<f32, 16, 16>, row_major>(&subgroup_results, (subgroup_number % 1u) * 256u, 16u);
            }
            workgroupBarrier();
            if (subgroup_number / 1u == 1u) {
`;

t.test("subgroups store, scale and load matrices", (t) => {
  const { options } = rising({}, false);
  const kernel = attentionMatrices(options, matrixQueries(options, MEMORY)!);
  const code = printWgsl(kernel, { matrices: 64 });
  t.match(code, "subgroup_scaled: array<u32, 2>;");
  t.match(code, IN_TURNS);
  const narrow = printWgsl(kernel, { matrices: 32 });
  t.match(narrow, "subgroup_scaled: array<u32, 4>;");
  t.match(narrow, "subgroup_sum0_0_0_0 = subgroupMatrixLoad<");
  t.notMatch(printWgsl(kernel), /subgroup/);
  t.end();
});
