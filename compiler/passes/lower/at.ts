/** A place inside a tensor: one index per axis, computed only when something asks. */

import { add, div, mul, rem, u32 } from "../../../spec/kernel/build.ts";
import type { Expr } from "../../../spec/kernel/tree.ts";

/** Indices by axis name. `flat`, where known, is the row-major index over exactly the axes `order`. */
export interface At {
  get(axis: string): Expr;
  readonly flat?: { readonly order: readonly string[]; readonly index: Expr };
}

/** The place with row-major index `index` over `order`; `length` gives lengths of axes. */
export function atFlat(
  order: readonly string[],
  index: Expr,
  length: (axis: string) => Expr,
): At {
  return {
    flat: { order, index },
    get(axis) {
      const i = order.indexOf(axis);
      const inner = order.slice(i + 1).map(length).reduce(
        (a, b) => mul(a, b),
        u32(1),
      );
      const outer = div(index, inner);
      return i === 0 ? outer : rem(outer, length(axis));
    },
  };
}

/** What a place on dispatched rows answers with its grouped row. */
export const ROW = "row of the routing";

/** `at` with some axes answered by `indices`. */
export function atWith(at: At, indices: { readonly [axis: string]: Expr }): At {
  return { ...at, get: (axis) => indices[axis] ?? at.get(axis) };
}

/** Another set of axes whose indices are computed from `at`; the flat index is lost. */
export function atMapped(get: (axis: string) => Expr): At {
  return { get };
}

/** The row-major index of `at` over `order`. */
export function flatIndex(
  at: At,
  order: readonly string[],
  length: (axis: string) => Expr,
): Expr {
  if (at.flat && at.flat.order.join() === order.join()) return at.flat.index;
  return order.reduce<Expr>(
    (index, axis) => add(mul(index, length(axis)), at.get(axis)),
    u32(0),
  );
}
