/** Values of operands and their rows, for references. */

import type { Context } from "./rules.ts";
import type { Node } from "../graph.ts";
import {
  lengthOf,
  put,
  type Shown,
  strides,
  type Value,
  visit,
  zeros,
} from "./value.ts";

/** The values of a node's operands. */
export function operands(
  node: Pick<Node, "inputs">,
  context: Context,
): Value[] {
  return node.inputs.map(context.value);
}

/** Lengths of a node's axes, taken from its operands. */
export function shapeFrom(node: Shown, values: readonly Value[]): number[] {
  return node.axes.map((axis) =>
    lengthOf(values.find((value) => value.axes.includes(axis))!, axis)
  );
}

/** Applies `f` to every row of `x` along `over`. */
export function alongRows(
  x: Value,
  over: string,
  each: (row: number[], index: number, offsets: number[]) => void,
): void {
  const rest = x.axes.filter((axis) => axis !== over);
  const shape = rest.map((axis) => lengthOf(x, axis));
  const [step] = strides(x, [over]);
  const length = lengthOf(x, over);
  visit(shape, [strides(x, rest)], ([start], index) => {
    const offsets = Array.from({ length }, (_, i) => start! + i * step!);
    each(offsets.map((offset) => x.data[offset]!), index, offsets);
  });
}

/** Replaces the rows of `x` along `over` by `f` of them. */
export function mapRows(
  node: Shown,
  x: Value,
  over: string,
  f: (row: number[]) => number[],
): Value {
  const result = zeros(node.axes, x.shape, node.dtype);
  alongRows(x, over, (row, _, offsets) => {
    f(row).forEach((y, i) => put(result, offsets[i]!, y));
  });
  return result;
}

/** The sum of numbers. */
export function total(xs: readonly number[]): number {
  return xs.reduce((a, b) => a + b, 0);
}
