/** Parameters that are split into parts, each with contractions of its own, such as `kv_b_proj`. */

import type { FileDType } from "../../../../spec/dtype.ts";
import { segmentsOf } from "../../../../spec/numerics.ts";
import type { Node } from "../../../graph/graph.ts";
import { isUneven } from "../../../sharding/lengths.ts";
import type { Placed } from "../../../sharding/placed.ts";
import { readsAlongK } from "../../../tuning/tile.ts";
import { dotShape } from "../matmul/dot_shape.ts";

/**
 * The axis along which elements of a split parameter may share words: its last one, if `contractBatches` computes all
 * contractions with its parts. They contract this axis, or it is their only column.
 */
export function viewedAxis(
  node: Node,
  { stored, users, placed }: {
    /** The dtype in the file. Undefined: the device does not keep the layout of files, and decodes on load. */
    readonly stored: FileDType | undefined;
    /** The users of all nodes. */
    readonly users: ReadonlyMap<Node, readonly Node[]>;
    readonly placed: Placed;
  },
): readonly string[] {
  if (stored === undefined) return [];
  const last = node.axes.at(-1)!;
  const reads = (user: Node, part: Node): boolean => {
    if (user.primitive === "split" || user.primitive === "slice") {
      return user.params.axis !== last && isRead(user);
    }
    if (user.primitive !== "dot" || user.inputs[1] !== part) return false;
    if (user.inputs[0] === part) return false;
    const { over, batch, columns } = dotShape(user);
    const isFixed = [...batch, ...over, ...columns].every((axis) => {
      const length = placed.axes[axis]!;
      return !length.dynamic && !isUneven(placed, length);
    });
    const k = over.reduce((n, axis) => n * placed.axes[axis]!.size, 1);
    const segments = user.params.segments ?? segmentsOf(k);
    return isFixed &&
      (over.join() === last
        ? readsAlongK(stored, { k, segments })
        : columns.join() === last);
  };
  const isRead = (part: Node): boolean => {
    const found = users.get(part) ?? [];
    return found.length > 0 && found.every((user) => reads(user, part));
  };
  return isRead(node) ? [last] : [];
}
