/** Values that differ by rank, as formulas of the rank: their size is independent of the rank count. */

import type { Count, Name, Natural, Several, Short, Word } from "./values.ts";
import { groupRankOf, type Mesh } from "./mesh.ts";

/** Rank r has entry `floor(r / every)`, modulo the number of entries; entries are runs of equal values. */
export interface RankRuns {
  readonly every: Count;
  readonly runs: Several<readonly [count: Count, value: Natural]>;
}

/** A number for all ranks, or one per rank. */
export type PerRank = Natural | RankRuns;

/** Number of ranks after which a value repeats: 1 if all are equal. */
export function ranksGiven(value: PerRank): number {
  return typeof value === "number"
    ? 1
    : value.every * value.runs.reduce((n, [count]) => n + count, 0);
}

/** The value on one rank. */
export function onRank(value: PerRank, rank: number): number {
  if (typeof value === "number") return value;
  const { every, runs } = value;
  let entry = Math.floor(rank % ranksGiven(value) / every);
  for (const [count, number] of runs) {
    if (entry < count) return number;
    entry -= count;
  }
  return NaN;
}

/** The distinct numbers. */
export function valuesOf(value: PerRank): readonly number[] {
  return typeof value === "number"
    ? [value]
    : value.runs.map(([, number]) => number);
}

/** The largest value on any rank. */
export function maxOverRanks(value: PerRank): number {
  return valuesOf(value).reduce((max, one) => Math.max(max, one));
}

function gcd(a: number, b: number): number {
  return b === 0 ? a : gcd(b, a % b);
}

/** The shortest form of a list with an entry per rank: entries, and the number of ranks that share one. */
function shortest<T>(
  list: readonly T[],
  same: (a: T, b: T) => boolean,
): { readonly every: number; readonly entries: readonly T[] } {
  let every = list.length;
  for (let i = 1; i < list.length && every > 1; i++) {
    if (!same(list[i]!, list[i - 1]!)) every = gcd(every, i);
  }
  const entries = list.filter((_, i) => i % every === 0);
  let period = 1;
  while (
    entries.length % period !== 0 ||
    !entries.every((entry, i) => same(entry, entries[i % period]!))
  ) period++;
  return { every, entries: entries.slice(0, period) };
}

/** The numbers of all ranks, in order, in the shortest form. */
export function perRank(values: readonly number[]): PerRank {
  const [first = 0] = values;
  if (values.every((value) => value === first)) return first;
  const { every, entries } = shortest(values, (a, b) => a === b);
  const runs: [number, number][] = [];
  for (const value of entries) {
    const last = runs.at(-1);
    if (last?.[1] === value) last[0]++;
    else runs.push([1, value]);
  }
  return { every, runs };
}

/** Applies a function on every rank. */
export function mapRanks(
  values: readonly PerRank[],
  apply: (values: readonly number[]) => number,
): PerRank {
  if (values.every((value) => typeof value === "number")) return apply(values);
  // Values repeat, and all of them after the least common multiple.
  const ranks = values.map(ranksGiven)
    .reduce((a, b) => a / gcd(a, b) * b, 1);
  return perRank(Array.from(
    { length: ranks },
    (_, rank) => apply(values.map((value) => onRank(value, rank))),
  ));
}

/** The sum of values on every rank. */
export function sumPerRank(values: readonly PerRank[]): PerRank {
  // Many values have few forms.
  const forms = new Map<string, { readonly value: PerRank; times: number }>();
  for (const value of values) {
    const key = typeof value === "number" ? `${value}` : JSON.stringify(value);
    const known = forms.get(key);
    if (known) known.times++;
    else forms.set(key, { value, times: 1 });
  }
  const all = [...forms.values()];
  return mapRanks(
    all.map(({ value }) => value),
    (numbers) => numbers.reduce((n, one, i) => n + one * all[i]!.times, 0),
  );
}

/**
 * The u32 words of a constant: equal on all ranks; lists, of which rank r has that of index `floor(r / every)`, modulo
 * their number; or the group rank over mesh axes.
 */
export type ConstData =
  | { readonly all: readonly Word[] }
  | { readonly every: Count; readonly lists: Several<readonly Word[]> }
  | { readonly groupRank: Short<Name> };

/** The words of all ranks, in order, in the shortest form. */
export function dataPerRank(lists: readonly (readonly number[])[]): ConstData {
  const { every, entries } = shortest(
    lists,
    (a, b) => a.length === b.length && a.every((word, i) => word === b[i]),
  );
  return entries.length === 1
    ? { all: entries[0]! }
    : { every, lists: entries };
}

/** The words on one rank. */
export function wordsOn(
  data: ConstData,
  { mesh, rank }: { readonly mesh: Mesh; readonly rank: number },
): readonly number[] {
  if ("all" in data) return data.all;
  if ("groupRank" in data) return [groupRankOf(mesh, rank, data.groupRank)];
  return data.lists[Math.floor(rank / data.every) % data.lists.length]!;
}

/** `1,234,567` */
export function digits(n: number): string {
  return String(n).replace(/\B(?=(\d{3})+$)/g, ",");
}

/**
 * One number, or those of the ranks until they repeat: `4`, `4/4/3`; more than eight equal ones as `29 x 256/4 x 768`.
 */
export function perRankText(value: PerRank): string {
  if (typeof value === "number") return digits(value);
  const { every, runs } = value;
  return runs.flatMap(([count, number]) => {
    const times = count * every;
    const one = digits(number);
    return times > 8
      ? [`${one} x ${times}`]
      : new Array<string>(times).fill(one);
  }).join("/");
}
