/** Selection of an element from a list of constants by a dynamic index. */

import { add, lt, mul, select, sub, u32 } from "./build.ts";
import type { Expr } from "./tree.ts";

/** Consecutive entries of a list with equal differences: from index `start` on, the first is `value`. */
interface Line {
  readonly start: number;
  readonly value: number;
  readonly step: number;
}

/** The constants as lines of maximum length. */
function linesOf(values: readonly number[]): readonly Line[] {
  const lines: Line[] = [];
  for (let start = 0; start < values.length;) {
    const value = values[start]!;
    const step = Math.max(0, (values[start + 1] ?? value) - value);
    lines.push({ start, value, step });
    const length = values.slice(start)
      .findIndex((v, i) => v !== value + i * step);
    start = length < 0 ? values.length : start + length;
  }
  return lines;
}

function valueAt({ start, value, step }: Line, at: Expr): Expr {
  const product = mul(at, u32(step));
  const first = value - start * step;
  return first < 0 ? sub(product, u32(-first)) : add(u32(first), product);
}

/**
 * values[at], for at least one value: a multiple of `at` if differences are equal, else a search of logarithmic depth.
 */
export function pick(values: readonly number[], at: Expr): Expr {
  const lines = linesOf(values);
  const choose = (from: number, to: number): Expr => {
    if (to - from === 1) return valueAt(lines[from]!, at);
    const middle = (from + to) >> 1;
    return select(
      lt(at, u32(lines[middle]!.start)),
      choose(from, middle),
      choose(middle, to),
    );
  };
  return choose(0, lines.length);
}
