/** Elementwise kernels, with one invocation per index: maps, copies, anything without a sum across elements. */

import { local } from "./build.ts";
import { type Hole, type Statements, wgsl } from "./text/text.ts";
import type { Binding, Expr, Kernel } from "./tree.ts";
import type { Size } from "../size.ts";
import { foldGrid, type Grid, GROUP_XY, kernelOf } from "./make.ts";

/** Invocations per workgroup. */
export const ELEMENTWISE_LANES = 64;

/** The index of an invocation: the variable `i` of an elementwise kernel. */
export const INDEX = local("i", "u32");

/** An elementwise kernel. */
export interface ElementwiseOptions {
  readonly name: string;
  /** Number of indices: u32, as an expression or as text. */
  readonly count: Hole;
  /** All bindings of `body`; may contain unused ones, and need not contain `lengths`. */
  readonly bindings: readonly Binding[];
  /** Code at index `i`. */
  readonly body: Statements | ((index: Expr) => Statements);
}

/** Executes `body` for every index `i` below `count`. */
export function elementwise(o: ElementwiseOptions): Kernel {
  return kernelOf({
    name: o.name,
    workgroupSize: ELEMENTWISE_LANES,
    bindings: o.bindings,
    body: wgsl`
      let i = ${GROUP_XY} * ${ELEMENTWISE_LANES} + lane;
      if (i < ${o.count}) {
        ${typeof o.body === "function" ? o.body(INDEX) : o.body}
      }`,
  });
}

/** The grid of an elementwise kernel over `count` indices. */
export function elementwiseGrid(count: Size): Grid {
  const groups: Size = typeof count === "number"
    ? Math.ceil(count / ELEMENTWISE_LANES)
    : { ceilDiv: [count, ELEMENTWISE_LANES] };
  return [...foldGrid(groups), 1];
}
