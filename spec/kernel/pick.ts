/** An element of a short list of constants, chosen by an index that is known at run time. */

import { add, lt, mul, select, u32 } from "./build.ts";
import type { Expr } from "./tree.ts";

/** The constants as `first + at * step`, where they are equally far apart. */
export function lineOf(
  values: readonly number[],
): { readonly first: number; readonly step: number } | undefined {
  const [first = 0, second = first] = values;
  const step = second - first;
  return step >= 0 && values.every((v, i) => v === first + i * step)
    ? { first, step }
    : undefined;
}

/** values[at]: a multiple of `at` where they are equally far apart, else a search of logarithmic depth. */
export function pick(values: readonly number[], at: Expr): Expr {
  const line = lineOf(values);
  if (line) return add(u32(line.first), mul(at, u32(line.step)));
  const choose = (from: number, to: number): Expr => {
    if (to - from === 1) return u32(values[from]!);
    const middle = (from + to) >> 1;
    return select(
      lt(at, u32(middle)),
      choose(from, middle),
      choose(middle, to),
    );
  };
  return choose(0, values.length);
}
