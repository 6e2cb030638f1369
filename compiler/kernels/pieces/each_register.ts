/** Statements for each of many registers, which are built and not read. */

import { f32, set, var_ } from "../../../spec/kernel/build.ts";
import type { Expr, Stmt } from "../../../spec/kernel/tree.ts";
import { nameOf, type Register, register } from "./registers.ts";

/** `var sum_suffix[r][c] = 0.0;` for each `sum[r][c]`. */
export function declareEach(
  all: readonly Register[],
  suffix = "",
): readonly Stmt[] {
  return all.map(({ base, indices }) =>
    var_(nameOf(base + suffix, indices), f32(0))
  );
}

/** `sum_suffix[r][c] = value;` for each `sum[r][c]`. `of` has the values of such registers with suffixes. */
export function setEach(
  all: readonly Register[],
  suffix: string,
  value: (of: (suffix: string) => Expr, register: Register) => Expr,
): readonly Stmt[] {
  return all.map((one) => {
    const { base, indices } = one;
    const of = (end: string) => register(base + end, indices);
    return set(nameOf(base + suffix, indices), value(of, one));
  });
}
