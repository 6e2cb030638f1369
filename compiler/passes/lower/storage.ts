/** Storage of results: a buffer with the node's axes; for dispatched rows, in grouped order or at received offsets. */

import { storedDType } from "../../../spec/dtype.ts";
import type { Node } from "../../graph/graph.ts";
import { sameAxes } from "../../graph/operands.ts";
import type { GroupedRows } from "./routing/group.ts";
import { restAxes } from "./index_space.ts";
import {
  addBuffer,
  addScratch,
  freshName,
  type Lowering,
  opOf,
  type Storage,
  unreducedOf,
} from "./context.ts";

/** Creates and registers the buffer of a node's value. Outputs keep their names. */
export function storageFor(lowering: Lowering, node: Node): Storage {
  const group = lowering.model.dispatched.get(node);
  const storage = lowering.values.bucketStorage.get(node) ??
    (group
      ? rowStorage(lowering, node, lowering.values.groups.get(group)!)
      : plainStorage(lowering, node));
  lowering.values.storages.set(node, storage);
  markUnreduced(lowering, node, storage.buffer);
  return storage;
}

/** Whether a buffer contains exactly the elements of a value, consecutively. */
export function isPlain({ rows, rowStride, bucket }: Storage): boolean {
  return !rows && rowStride === undefined && !bucket;
}

/** Marks the buffer of `node` as unreduced over the mesh axes of its sharding. */
export function markUnreduced(
  lowering: Lowering,
  node: Node,
  buffer: string,
): void {
  const unreduced = unreducedOf(node);
  if (unreduced.length === 0) return;
  lowering.draft.buffers.set(buffer, {
    ...lowering.draft.buffers.get(buffer)!,
    unreduced,
  });
}

function plainStorage(lowering: Lowering, node: Node): Storage {
  const dtype = storedDType(node.dtype);
  const axes = lowering.model.nextAxes.get(node) ?? node.axes;
  const output = Object.entries(lowering.model.graph.outputs).find((
    [, value],
  ) => value === node)?.[0];
  // An output has its own axis order: it is copied from the parameter's layout.
  const buffer = output === undefined || !sameAxes(axes, node.axes)
    ? addScratch(lowering, opOf(node), dtype, axes)
    : addBuffer(lowering, {
      name: freshName(lowering, output),
      kind: "output",
      dtype,
      axes,
    });
  return { buffer, dtype, axes };
}

/** The operand of a combine is written at the received offsets, so that it can be sent back. */
function rowStorage(
  lowering: Lowering,
  node: Node,
  rows: GroupedRows,
): Storage {
  const dtype = storedDType(node.dtype);
  const rest = restAxes(node);
  const buffer = addScratch(lowering, opOf(node), dtype, [
    { axis: rows.axis, size: rows.received.bound, dynamic: true },
    ...rest,
  ]);
  return {
    buffer,
    dtype,
    axes: rest,
    rows: {
      rows,
      through: lowering.model.returning.has(node) ? rows.rowOf : undefined,
    },
  };
}
