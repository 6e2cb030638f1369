/** Sizes known when a program starts: numbers, run-time counts of axes, and sums and products of them. */

import type { Count, Name, Natural, ShortNonEmpty } from "./values.ts";

/** A size expression. `count` is this rank's length of a dynamic axis; with `over`, the sum over the group. */
export type Size =
  | Natural
  | { readonly count: Name; readonly over?: ShortNonEmpty<Name> }
  | { readonly mul: ShortNonEmpty<Size> }
  | { readonly add: ShortNonEmpty<Size> }
  | { readonly min: ShortNonEmpty<Size> }
  | { readonly ceilDiv: readonly [Size, Count] };

/** Evaluate a size; `count` looks up a run-time count. */
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
  return `ceil(${formatSize(size.ceilDiv[0])} / ${size.ceilDiv[1]})`;
}
