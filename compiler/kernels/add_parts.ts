/** Adds the terms of the ranks of a group as a balanced binary tree in rank order. */

import { addAsTree } from "../../spec/numerics.ts";
import type { Expr, Hole, Kernel, KernelText } from "./kernel.ts";
import { elementwise, expr, INDEX, local, wgsl } from "./kernel.ts";
import type { ResultOptions } from "./reduce.ts";
import { registers } from "../../spec/kernel/registers.ts";
import { sumTree } from "./pieces/sum_tree.ts";

/** Elements that are sums of terms. The grid is `elementwiseGrid(count)`. */
export interface AddPartsOptions extends ResultOptions {
  /** Number of terms: the ranks of the group. */
  readonly parts: number;
  /** The term of result i from a rank of the group. */
  load(i: Expr, rank: Expr): Expr;
}

/** Maximum number of terms in one expression; more are added in a loop. */
const ONE_EXPRESSION = 8;

/** For every i, adds load(i, 0), load(i, 1), … as a tree. */
export function addParts(o: AddPartsOptions): Kernel {
  return elementwise({
    ...o,
    body: wgsl`
      ${o.parts <= ONE_EXPRESSION ? oneExpression(o) : loop(o)}
      ${o.epilogue(INDEX, local("sum", "f32"))}`,
  });
}

function oneExpression(o: AddPartsOptions): KernelText {
  const parts = Array.from(
    { length: o.parts },
    (_, rank): Hole => o.load(INDEX, expr`${rank}u`),
  );
  return wgsl`let sum = ${addAsTree(parts, (a, b) => wgsl`${a} + ${b}`)};`;
}

function loop(o: AddPartsOptions): KernelText {
  const tree = sumTree(registers("sum"), o.parts);
  const rank = local("rank", "u32");
  return wgsl`
    var sum = 0.0;
    ${tree.declare}
    for (var rank = 0u; rank < ${o.parts}; rank++) {
      sum = ${o.load(INDEX, rank)};
      ${tree.add(rank)}
    }
    ${tree.finish}`;
}
