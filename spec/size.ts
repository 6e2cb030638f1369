/** Sizes known when a program starts: numbers, run-time counts of axes, and arithmetic on them. */

import type { Count, Name, Natural, ShortNonEmpty } from "./values.ts";

/** A size expression. `count`: this rank's length of a dynamic axis; with `over`, the sum over the group. */
export type Size =
  | Natural
  | { readonly count: Name; readonly over?: ShortNonEmpty<Name> }
  | { readonly mul: ShortNonEmpty<Size> }
  | { readonly add: ShortNonEmpty<Size> }
  | { readonly min: ShortNonEmpty<Size> }
  /** The last size where the first is at most the limit, else 0; and where it is more, else 0. */
  | { readonly upTo: readonly [by: Size, limit: Natural, size: Size] }
  | { readonly above: readonly [by: Size, limit: Natural, size: Size] }
  | { readonly ceilDiv: readonly [Size, Count] };

/** Evaluates a size. `count` looks up a dynamic length. */
export function evaluateSize(
  size: Size,
  count: (axis: string, over: readonly string[]) => number,
): number {
  if (typeof size === "number") return size;
  if ("count" in size) return count(size.count, size.over ?? []);
  if ("mul" in size) {
    return size.mul.reduce<number>((n, s) => n * evaluateSize(s, count), 1);
  }
  if ("add" in size) {
    return size.add.reduce<number>((n, s) => n + evaluateSize(s, count), 0);
  }
  if ("min" in size) {
    return Math.min(...size.min.map((s) => evaluateSize(s, count)));
  }
  if ("upTo" in size) {
    const [by, limit, then] = size.upTo;
    return evaluateSize(by, count) <= limit ? evaluateSize(then, count) : 0;
  }
  if ("above" in size) {
    const [by, limit, then] = size.above;
    return evaluateSize(by, count) > limit ? evaluateSize(then, count) : 0;
  }
  return Math.ceil(evaluateSize(size.ceilDiv[0], count) / size.ceilDiv[1]);
}

/** The text of a size: `ceil(token / 4)`, `token/ep@ep * 2`. */
export function formatSize(size: Size): string {
  if (typeof size === "number") return String(size);
  if ("count" in size) {
    return size.over ? `${size.count}@${size.over.join("+")}` : size.count;
  }
  if ("mul" in size) return size.mul.map(formatSize).join(" * ");
  if ("add" in size) return `(${size.add.map(formatSize).join(" + ")})`;
  if ("min" in size) return `min(${size.min.map(formatSize).join(", ")})`;
  if ("upTo" in size) {
    const [by, limit, then] = size.upTo;
    return `(${formatSize(then)} if ${formatSize(by)} <= ${limit})`;
  }
  if ("above" in size) {
    const [by, limit, then] = size.above;
    return `(${formatSize(then)} if ${formatSize(by)} > ${limit})`;
  }
  return `ceil(${formatSize(size.ceilDiv[0])} / ${size.ceilDiv[1]})`;
}
