/** Construction of statements over many registers (variables with a name and indices), instead of parsing them. */

import { f32, let_, load, loads, local, set, var_ } from "./build.ts";
import { registerName } from "./register_name.ts";
import type { Binding, Expr, ScalarType, Stmt } from "./tree.ts";

/** `base[r][c]` in kernel text; without indices, a variable. A named index is the variable of an enclosing loop. */
export interface Register {
  readonly base: string;
  readonly indices: readonly (number | string)[];
}

/** All indices below `ends`, the last varying fastest. */
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

/** The registers of a name with indices below `ends`. */
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

/** The name in a tree. */
function nameOf(base: string, indices: Register["indices"]): string {
  if (indices.length === 0) return base;
  return indices.every((i) => typeof i === "number")
    ? registerName(base, indices)
    : base + indices.map((i) => `[${i}]`).join("");
}

/** `let base[c] = value;` */
export function letRegister(
  base: string,
  indices: Register["indices"],
  value: Expr,
): Stmt {
  return let_(nameOf(base, indices), value);
}

/** Loads adjacent words into registers of a name: one, or two or four at once. The index counts loads. */
export function loadRegisters(
  base: string,
  columns: readonly number[],
  from: {
    readonly binding: string;
    readonly index: Expr;
    readonly type: Binding["type"];
  },
): Stmt {
  const { binding, index, type } = from;
  return columns.length === 1
    ? letRegister(base, columns, load(binding, index, type))
    : loads(columns.map((c) => nameOf(base, [c])), from);
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

/** `sum_suffix[r][c] = value;` for each `sum[r][c]`. `of` returns the values of registers with suffixes. */
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
