/** Registers, and statements for each of many: those are built and not read. */

import { f32, set, var_ } from "../../../spec/kernel/build.ts";
import { registerName } from "../../../spec/kernel/register_name.ts";
import type { Expr, ScalarType, Stmt } from "../../../spec/kernel/tree.ts";
import { local } from "../kernel.ts";

/** What kernel text calls `base[r][c]`; without indices, a variable. An index that is a name is one of a loop around it. */
export interface Register {
  readonly base: string;
  readonly indices: readonly (number | string)[];
}

/** All indices below `ends`, the last one fastest. */
export function indicesBelow(
  ...ends: readonly number[]
): readonly (readonly number[])[] {
  return ends.reduce<readonly (readonly number[])[]>(
    (all, end) =>
      all.flatMap((outer) =>
        Array.from({ length: end }, (_, i) => [...outer, i])
      ),
    [[]],
  );
}

/** The registers of a name that have indices below `ends`. */
export function registers(
  base: string,
  ...ends: readonly number[]
): readonly Register[] {
  return indicesBelow(...ends).map((indices) => ({ base, indices }));
}

/** The value of `base[r][c]`. */
export function register(
  base: string,
  indices: Register["indices"],
  type: ScalarType = "f32",
): Expr {
  return local(nameOf(base, indices), type);
}

function nameOf(base: string, indices: Register["indices"]): string {
  if (indices.length === 0) return base;
  return indices.every((i) => typeof i === "number")
    ? registerName(base, indices)
    : base + indices.map((i) => `[${i}]`).join("");
}

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
