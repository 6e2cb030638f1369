/** One invocation for each index: maps, copies, anything without a sum across elements. */

import { add, id, if_, let_, local, lt, mul, u32 } from "./build.ts";
import type { Binding, Expr, Kernel, Stmt } from "./tree.ts";
import type { Size } from "../size.ts";
import { foldGrid, type Grid, groupXY, kernelOf } from "./make.ts";

/** Invocations of a workgroup. */
export const ELEMENTWISE_LANES = 64;

/** An elementwise kernel. */
export interface ElementwiseOptions {
  readonly name: string;
  /** How many indices. */
  readonly count: Expr;
  /** Superset of what `body` uses; `lengths` need not be listed. */
  readonly bindings: readonly Binding[];
  /** What happens at an index (the local `i`). */
  body(index: Expr): readonly Stmt[];
}

/** Run `body` for every index below `count`. */
export function elementwise(o: ElementwiseOptions): Kernel {
  const index = local("i", "u32");
  return kernelOf({
    name: o.name,
    workgroupSize: ELEMENTWISE_LANES,
    bindings: o.bindings,
    body: [
      let_("i", add(mul(groupXY(), u32(ELEMENTWISE_LANES)), id("local"))),
      if_(lt(index, o.count), o.body(index)),
    ],
  });
}

/** The grid of an elementwise kernel over `count` indices. */
export function elementwiseGrid(count: Size): Grid {
  const groups: Size = typeof count === "number"
    ? Math.ceil(count / ELEMENTWISE_LANES)
    : { ceilDiv: [count, ELEMENTWISE_LANES] };
  return [...foldGrid(groups), 1];
}
