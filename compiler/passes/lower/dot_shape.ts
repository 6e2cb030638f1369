/** The axes of a contraction by what they do. */

import type { Node, NodeOf } from "../../graph/graph.ts";

/** The axes of a dot by what they do. */
export interface DotShape {
  /** On both operands and the result. */
  readonly batch: readonly string[];
  readonly over: readonly string[];
  /** The left operand's other axes. */
  readonly rows: readonly string[];
  /** The right operand's other axes. */
  readonly columns: readonly string[];
}

/** Sort the axes of a dot. */
export function dotShape(node: NodeOf<"dot">): DotShape {
  const [left, right] = node.inputs as [Node, Node];
  const { over } = node.params;
  const batch = left.axes.filter((axis) =>
    right.axes.includes(axis) && !over.includes(axis)
  );
  return {
    batch,
    over,
    rows: left.axes.filter((axis) => !right.axes.includes(axis)),
    columns: right.axes.filter((axis) => !left.axes.includes(axis)),
  };
}
