/** Contractions that the tiled kernel supports. */

import type { RowsNode } from "../../../graph/routing/dispatched_nodes.ts";
import type { Node, NodeOf } from "../../../graph/graph.ts";
import type { ParamLayout } from "../../param_layout.ts";
import { dotShape } from "./dot_shape.ts";
import { filedAxes, rightAxes } from "../params/params.ts";

/**
 * Whether the tiled kernel supports a dot: a parameter on the right in its layout, and no batch axis except local
 * experts.
 */
export function isMatmul(
  node: Node,
  layouts: ReadonlyMap<Node, ParamLayout>,
  dispatched: ReadonlyMap<Node, RowsNode>,
): boolean {
  if (node.primitive !== "dot") return false;
  const layout = layouts.get(node.inputs[1]!);
  if (!layout) return false;
  const shape = dotShape(node);
  const { columns, over } = shape;
  // Gradients contract packed parameters over another axis.
  if (layout.along !== undefined && over.join() !== layout.along) return false;
  const orders = [rightAxes(shape), ...layout.filed ? [filedAxes(shape)] : []];
  if (
    columns.length === 0 ||
    !orders.some((order) => order.join() === layout.axes.join())
  ) return false;
  if (columns.length > 1 && layout.rowStride !== undefined) return false;
  if (layout.splitsWords) return false;
  return hasMatmulShape(node, dispatched);
}

/** Whether a dot has rows on the left, columns on the right, and no batch axis except experts of dispatched rows. */
export function hasMatmulShape(
  node: NodeOf<"dot">,
  dispatched: ReadonlyMap<Node, RowsNode>,
): boolean {
  const { batch, rows } = dotShape(node);
  const group = dispatched.get(node.inputs[0]!);
  if (!group) return batch.length === 0 && rows.length > 0;
  return batch.length === 1 && batch[0] === node.axes[0] &&
    rows.join() === group.params.slot;
}
