/** Row index space of a value: tokens, or dispatched rows. */

import {
  binary,
  div,
  load,
  mul,
  rem,
  u32,
} from "../../../spec/kernel/build.ts";
import type { Expr, Kernel, Stmt } from "../../../spec/kernel/tree.ts";
import type { Size } from "../../../spec/size.ts";
import type { Node } from "../../graph/graph.ts";
import {
  elementwise,
  elementwiseGrid,
} from "../../../spec/kernel/elementwise.ts";
import type { Grid } from "../../kernels/kernel.ts";
import { type At, atFlat, ROW } from "./indices.ts";
import { fixedProduct, opOf, productOf, sizeOf } from "./context.ts";
import type { GroupedRows } from "./routing/group.ts";
import type { KernelScope } from "./scope.ts";

/** An index space in row-major order. */
export interface IndexSpace {
  /** The number of indices. */
  readonly count: Expr;
  /** The maximum number of indices, as known to the host. */
  readonly size: Size;
  at(index: Expr): At;
}

/** The index space of `axes` of `node`. For a dispatched value, these include the expert and slot axes. */
export function indexSpaceOf(
  scope: KernelScope,
  node: Node,
  axes: readonly string[] = node.axes,
): IndexSpace {
  const { lowering } = scope;
  const group = lowering.model.dispatched.get(node);
  if (!group) {
    return {
      count: productOf(scope, axes),
      size: sizeOf(lowering, axes),
      at: (index) => atFlat(scope, axes, index),
    };
  }
  // Only the device knows the number of rows; the host's size is the maximum.
  const grouped = lowering.values.groups.get(group)!;
  const rest = restAxes(node, axes);
  const width = fixedProduct(lowering, node, rest);
  const rows = load(scope.read(grouped.rowCount), u32(0), "u32");
  return {
    count: mul(rows, u32(width)),
    size: { mul: [grouped.received.size, width] },
    at(index) {
      const row = div(index, u32(width));
      const inner = atFlat(scope, rest, rem(index, u32(width)));
      return atRow(scope, inner, { grouped, row });
    },
  };
}

/** The grid of an elementwise kernel with this many indices per invocation. */
export function indexGrid({ size }: IndexSpace, each = 1): Grid {
  if (each === 1) return elementwiseGrid(size);
  return elementwiseGrid(
    typeof size === "number"
      ? Math.ceil(size / each)
      : { ceilDiv: [size, each] },
  );
}

/** The axes of a dispatched value within a row. */
export function restAxes(
  node: Node,
  axes: readonly string[] = node.axes,
): string[] {
  // The first axes of a row are its expert and slot.
  const [expert, slot] = node.axes;
  return axes.filter((axis) => axis !== expert && axis !== slot);
}

/** A grouped row. `expert`: the index of its expert, if known. */
export interface GroupedRow {
  readonly grouped: GroupedRows;
  readonly row: Expr;
  readonly expert?: Expr;
}

/** The index of `inner` in a grouped row. */
export function atRow(
  scope: KernelScope,
  inner: At,
  { grouped, row, expert }: GroupedRow,
): At {
  return {
    ...inner,
    get(axis) {
      if (axis === ROW) return row;
      if (axis !== grouped.expert) return inner.get(axis);
      return expert ?? load(scope.read(grouped.expertOf), row, "u32");
    },
  };
}

/** Extends `at` by the index `i` of `over`, the axis that the rows of `at` lack. */
export function alongRow(
  axes: readonly string[],
  over: string,
  { at, row, i, length }: { at: At; row: Expr; i: Expr; length: Expr },
): At {
  const get = (axis: string) => axis === over ? i : at.get(axis);
  const isComplete = at.flat?.order.length === axes.length - 1;
  if (!isComplete || axes.at(-1) !== over) return { get };
  const index = binary("add", binary("mul", row, length), i);
  return { get, flat: { order: axes, index } };
}

/** Executes `body` at every index of a value of `node`. */
export function writeAll(
  scope: KernelScope,
  node: Node,
  axes: readonly string[],
  body: (at: At) => readonly Stmt[],
): void {
  const space = indexSpaceOf(scope, node, axes);
  const kernel = kernelAt(scope, node, space, body);
  scope.launch(node, kernel, indexGrid(space));
}

/** The kernel that executes `body` at every index of a space of `node`. */
export function kernelAt(
  scope: KernelScope,
  node: Node,
  space: IndexSpace,
  body: (at: At) => readonly Stmt[],
): Kernel {
  const rows = scope.lowering.model.dispatched.has(node) ? "_rows" : "";
  return elementwise({
    name: `${opOf(node)}${rows}`,
    count: space.count,
    bindings: scope.bindings,
    body: (index) => scope.block(() => body(space.at(index))),
  });
}
