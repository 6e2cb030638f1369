/** Expert load: even, random with a preference, or recorded by a run. */

import type { HostTensor } from "../../../runtime/mod.ts";
import { DataError } from "../../../spec/errors.ts";
import { sum } from "../../../spec/sum.ts";
import { CHOICES } from "../../replay.ts";

/** Expert load as a distribution. */
export type ExpertLoad =
  /** As even as possible. */
  | { readonly kind: "even" }
  /** Random choices per token, with weight 1 / (e + 1) ** exponent for expert e; 0: uniform. */
  | { readonly kind: "zipf"; readonly exponent: number }
  /** Number of choices of each expert, [router][expert]; and choices of each token, [router][token]. */
  | {
    readonly kind: "recorded";
    readonly counts: readonly number[][];
    readonly choices?: readonly (readonly number[])[][];
  };

/** Rows that group ranks receive for `tokens` tokens. */
export interface RowShares {
  /** Expected maximum fraction of all choices on a group rank. */
  readonly max: number;
  readonly mean: number;
}

/** Choices per token of each expert; the sum is `topK`. Throws DataError if a record has other experts. */
export function expertShares(
  load: ExpertLoad,
  { experts, topK, routing }: {
    readonly experts: number;
    readonly topK: number;
    readonly routing: number;
  },
): number[] {
  if (load.kind === "even") {
    return new Array<number>(experts).fill(topK / experts);
  }
  if (load.kind === "recorded") {
    const counts = load.counts[routing % load.counts.length] ?? [];
    if (counts.length > experts) {
      throw new DataError(
        `Cannot use the recorded choices: expert ${
          counts.length - 1
        } was chosen, and the model has ${experts}. Record a run of the same model`,
      );
    }
    const all = sum(counts);
    return Array.from(
      { length: experts },
      (_, e) => topK * (counts[e] ?? 0) / all,
    );
  }
  const weights = Array.from(
    { length: experts },
    (_, e) => (e + 1) ** -load.exponent,
  );
  // Without replacement: expert e is chosen if -log(u) / weight is below the time at which topK choices are expected.
  const chosen = (time: number) => weights.map((w) => 1 - Math.exp(-w * time));
  let [low, high] = [0, 1];
  while (sum(chosen(high)) < topK && high < 1e12) high *= 2;
  for (let i = 0; i < 60; i++) {
    const middle = (low + high) / 2;
    if (sum(chosen(middle)) < topK) low = middle;
    else high = middle;
  }
  const shares = chosen(high);
  const all = sum(shares);
  return shares.map((share) => share * topK / all);
}

/** Number of load samples for the expected maximum. */
const DRAWS = 64;

/** Shares of group ranks, whose experts start at `splits`. For random loads: the expected maximum of samples. */
export function rowShares(
  load: ExpertLoad,
  shares: readonly number[],
  { splits, tokens }: {
    readonly splits: readonly number[];
    readonly tokens: number;
  },
): RowShares {
  const topK = sum(shares);
  const parts = splits.slice(1).map((end, p) =>
    sum(shares.slice(splits[p], end)) / topK
  );
  const mean = 1 / parts.length;
  if (load.kind !== "zipf" || parts.length === 1) {
    return { max: Math.max(...parts), mean };
  }
  const rows = Math.max(1, tokens * topK);
  const random = normalsFrom(parts.length);
  let max = 0;
  for (let draw = 0; draw < DRAWS; draw++) {
    max += Math.max(
      ...parts.map((p) => p + Math.sqrt(p * (1 - p) / rows) * random()),
    );
  }
  return { max: Math.min(1, max / DRAWS), mean };
}

/** Deterministic uniform numbers (mulberry32). */
export function uniformsFrom(seed: number): () => number {
  let state = Math.imul(seed + 1, 0x9e3779b1);
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Deterministic standard normal numbers (Box-Muller). */
function normalsFrom(seed: number): () => number {
  const uniform = uniformsFrom(seed);
  return () =>
    Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
}

/** Expert load from the outputs of a run. Throws DataError if they have no choices. */
export function recordedLoad(
  trace: { readonly [name: string]: HostTensor },
): ExpertLoad {
  const layers = Object.entries(trace)
    .filter(([name]) => CHOICES.test(name))
    .sort(([a], [b]) => Number(/\d+/.exec(a)![0]) - Number(/\d+/.exec(b)![0]));
  if (layers.length === 0) {
    throw new DataError(
      "Cannot use recorded choices: the file has no tensor 'layer{N}.topk_idx'. Give one that 'run --outputs' wrote",
    );
  }
  // Padding has no choices; a run records -1.
  const choices = layers.map(([, { data, shape }]) => {
    const topK = shape.at(-1)!;
    return Array.from(
      { length: data.length / topK },
      (_, token) => [...data.subarray(token * topK, (token + 1) * topK)],
    ).filter(([first]) => first! >= 0);
  });
  const counts = choices.map((tokens) => {
    const chosen: number[] = [];
    for (const expert of tokens.flat()) {
      while (chosen.length <= expert) chosen.push(0);
      chosen[expert]! += 1;
    }
    return chosen;
  });
  return { kind: "recorded", counts, choices };
}
