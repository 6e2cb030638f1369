/** Where results go: a buffer of the node's own, in its axes; on dispatched rows, in grouped order or where they came from. */

import { isHalf, storedDType } from "../../../spec/dtype.ts";
import type { Node } from "../../graph/graph.ts";
import { sameAxes } from "../../graph/operands.ts";
import type { GroupedRows } from "./group.ts";
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

/** Make the buffer of a node's value and note it. Outputs keep their names. */
export function storageFor(lowering: Lowering, node: Node): Storage {
  const group = lowering.model.dispatched.get(node);
  const storage = lowering.values.bucketPlaces.get(node) ??
    (group
      ? rowStorage(lowering, node, lowering.values.groups.get(group)!)
      : plainStorage(lowering, node));
  lowering.values.storages.set(node, storage);
  markUnreduced(lowering, node, storage.buffer);
  return storage;
}

/** Whether a buffer has a value's elements and nothing else, one after another. */
export function isPlain({ rows, rowStride, bucket }: Storage): boolean {
  return !rows && rowStride === undefined && !bucket;
}

/** Say of a buffer that holds the value of `node` over which mesh axes it is a sum, if it is a part of one. */
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
  const axes = updatedAxes(lowering, node) ?? node.axes;
  const output = Object.entries(lowering.model.graph.outputs).find((
    [, value],
  ) => value === node)?.[0];
  // An output has its own order: it is copied from where the parameter's is.
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

/** Of the next value of a parameter that is copied: the order in which the parameter is stored in memory. */
function updatedAxes(
  { model: { graph, layouts } }: Lowering,
  node: Node,
): readonly string[] | undefined {
  const [name] =
    Object.entries(graph.states).find(([, next]) => next === node) ?? [];
  if (name === undefined) return undefined;
  for (const [leaf, { axes, stored }] of layouts) {
    if (leaf.primitive !== "param" || leaf.params.name !== name) continue;
    return isHalf(stored) ? undefined : axes;
  }
  return undefined;
}

/** The value that a combine takes is written where its row was received, so that it can be sent back. */
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
