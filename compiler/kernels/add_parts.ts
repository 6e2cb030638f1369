/** Parts of sums, one from each rank of a group, added as a balanced binary tree in the order of ranks. */

import {
  add,
  f32,
  for_,
  let_,
  local,
  set,
  u32,
  var_,
} from "../../spec/kernel/build.ts";
import type { Binding, Expr, Kernel, Stmt } from "../../spec/kernel/tree.ts";
import { addAsTree } from "../../spec/numerics.ts";
import { elementwise } from "./elementwise.ts";
import { sumTree } from "./sum.ts";

/** Elements that are each a sum of parts. The grid is `elementwiseGrid(count)`. */
export interface AddPartsOptions {
  readonly name: string;
  /** How many results. */
  readonly count: Expr;
  /** How many parts of each: the ranks of a group. */
  readonly parts: number;
  readonly bindings: readonly Binding[];
  /** The part of result i from a rank of the group. */
  load(i: Expr, rank: Expr): Expr;
  epilogue(i: Expr, sum: Expr): readonly Stmt[];
}

/** Parts up to which their sum is one expression; those of more ranks are added in a loop. */
const ONE_EXPRESSION = 8;

/** For every i, the parts load(i, 0), load(i, 1), … added as a tree. */
export function addParts(o: AddPartsOptions): Kernel {
  return elementwise({
    ...o,
    body: (i) => [...sumOfParts(o, i), ...o.epilogue(i, local("sum", "f32"))],
  });
}

function sumOfParts(o: AddPartsOptions, i: Expr): readonly Stmt[] {
  if (o.parts <= ONE_EXPRESSION) {
    const parts = Array.from(
      { length: o.parts },
      (_, rank) => o.load(i, u32(rank)),
    );
    return [let_("sum", addAsTree(parts, (a, b) => add(a, b)))];
  }
  const tree = sumTree({ count: o.parts, totals: ["sum"] });
  const rank = local("rank", "u32");
  return [
    var_("sum", f32(0)),
    ...tree.declare,
    for_("rank", u32(0), u32(o.parts), [
      set("sum", o.load(i, rank)),
      ...tree.add(rank),
    ]),
    ...tree.finish,
  ];
}
