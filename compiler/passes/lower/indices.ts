/** An index into a tensor: one index per axis, computed on demand. */

import { add, div, mul, rem, u32 } from "../../../spec/kernel/build.ts";
import type { Expr } from "../../../spec/kernel/tree.ts";
import { lengthOf, productOf } from "./context.ts";
import type { KernelScope } from "./scope.ts";

/** Indices by axis name. `flat`, where known, is the row-major index over exactly the axes `order`. */
export interface At {
  get(axis: string): Expr;
  readonly flat?: { readonly order: readonly string[]; readonly index: Expr };
}

/** The element with row-major index `index` over `order`. */
export function atFlat(
  scope: KernelScope,
  order: readonly string[],
  index: Expr,
): At {
  return {
    flat: { order, index },
    get(axis) {
      const i = order.indexOf(axis);
      const outer = div(index, productOf(scope, order.slice(i + 1)));
      return i === 0 ? outer : rem(outer, lengthOf(scope, axis));
    },
  };
}

/** The name under which an index on dispatched rows returns its grouped row. */
export const ROW = "row of the routing";

/** `at` with another index along one axis. The flat index is lost. */
export function atWith(at: At, axis: string, index: () => Expr): At {
  return { get: (name) => name === axis ? index() : at.get(name) };
}

/** `inner` along some axes, `outer` along the others. The flat index is lost. */
export function atJoined(axes: readonly string[], inner: At, outer: At): At {
  return { get: (axis) => (axes.includes(axis) ? inner : outer).get(axis) };
}

/** The row-major index of `at` over `order`. */
export function flatIndex(
  scope: KernelScope,
  order: readonly string[],
  at: At,
): Expr {
  if (at.flat && at.flat.order.join() === order.join()) return at.flat.index;
  return order.reduce<Expr>(
    (index, axis) => add(mul(index, lengthOf(scope, axis)), at.get(axis)),
    u32(0),
  );
}
