/** Reference of `examples/two_moe.ts` in f64 loops, without the compiler. */

import type { TensorDirectory } from "../../runtime/mod.ts";

const EMBED = 32;

/** Reads a matrix of a checkpoint by row. */
type Weights = (name: string) => Promise<(row: number) => Float32Array>;

function readerOf(tensors: TensorDirectory): Weights {
  return async (name) => {
    const { source, offset, bytes, shape } = tensors.get(name)!;
    const data = new Float32Array(
      (await source.read(offset, bytes)).slice().buffer,
    );
    const width = shape.at(-1)!;
    return (row) => data.subarray(row * width, (row + 1) * width);
  };
}

function product(
  x: readonly number[],
  row: (i: number) => Float32Array,
  rows: number,
): number[] {
  return Array.from(
    { length: rows },
    (_, i) => row(i).reduce((sum, w, j) => sum + w * x[j]!, 0),
  );
}

/** Computes down(up · silu(gate)). */
async function expert(
  weights: Weights,
  x: readonly number[],
  { at, ffn }: { readonly at: string; readonly ffn: number },
): Promise<number[]> {
  const gate = product(x, await weights(`${at}.gate`), ffn);
  const up = product(x, await weights(`${at}.up`), ffn);
  const hidden = gate.map((g, i) => g / (1 + Math.exp(-g)) * up[i]!);
  return product(hidden, await weights(`${at}.down`), EMBED);
}

/** Returns the scores of experts, and the experts in descending order of score plus bias. */
async function choose(
  weights: Weights,
  x: readonly number[],
  { at, experts, bias }: {
    readonly at: string;
    readonly experts: number;
    readonly bias: boolean;
  },
): Promise<{ scores: number[]; order: number[] }> {
  const logits = product(x, await weights(`${at}.router.weight`), experts);
  const scores = logits.map((l) => bias ? 1 / (1 + Math.exp(-l)) : Math.exp(l));
  const added = bias ? (await weights(`${at}.router.bias`))(0) : undefined;
  const by = scores.map((score, e) => score + (added?.[e] ?? 0));
  const order = by.map((_, e) => e).sort((a, b) => by[b]! - by[a]! || a - b);
  return { scores, order };
}

/** Returns the output rows of the model for some input rows. */
export async function twoMoeReference(
  tensors: TensorDirectory,
  rows: readonly (readonly number[])[],
): Promise<number[]> {
  const weights = readerOf(tensors);
  const layers = [
    { experts: 6, ffn: 48, topK: 2, bias: false },
    { experts: 10, ffn: 40, topK: 3, bias: true },
  ];
  const result: number[] = [];
  for (let x of rows) {
    for (const [i, { ffn, topK, ...layer }] of layers.entries()) {
      const at = `layers.${i}.moe`;
      const { scores, order } = await choose(weights, x, { at, ...layer });
      const chosen = order.slice(0, topK);
      const total = chosen.reduce((sum, e) => sum + scores[e]!, 0);
      const shared = await expert(weights, x, { at: `${at}.shared`, ffn: 24 });
      const y = x.map((v, j) => v + shared[j]!);
      for (const e of chosen) {
        const done = await expert(weights, x, {
          at: `${at}.experts.${e}`,
          ffn,
        });
        done.forEach((v, j) => y[j]! += scores[e]! / total * v);
      }
      x = y;
    }
    result.push(...x);
  }
  return result;
}
