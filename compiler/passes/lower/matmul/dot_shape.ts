/** Roles of the axes of a contraction. */

import type { Node, NodeOf } from "../../../graph/graph.ts";

/** Axes of a dot by role. */
export interface DotShape {
  /** Axes of both operands and the result. */
  readonly batch: readonly string[];
  readonly over: readonly string[];
  /** Other axes of the left operand. */
  readonly rows: readonly string[];
  /** Other axes of the right operand. */
  readonly columns: readonly string[];
}

/** Sorts the axes of a dot by role. */
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
