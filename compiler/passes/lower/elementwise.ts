/** Elementwise kernels: any expression over stored values, one invocation per element. */

import { storedDType } from "../../../spec/dtype.ts";
import { invariant } from "../../../spec/errors.ts";
import type { Expr } from "../../../spec/kernel/tree.ts";
import type { Node, NodeOf } from "../../graph/graph.ts";
import type { At } from "./at.ts";
import {
  addBuffer,
  addScratch,
  amendBuffer,
  bufferAxes,
  freshName,
  type Lowering,
  MAIN,
  type Storage,
} from "./context.ts";
import { computeValue, emitValue, storeTo } from "./emit.ts";
import { writeAll } from "./places.ts";
import { KernelScope } from "./scope.ts";
import { isPlain, markPartial, storageFor } from "./storage.ts";

/** Store a node that is an expression over stored ones. */
export function lowerElementwise(lowering: Lowering, node: Node): void {
  const scope = new KernelScope(lowering);
  const storage = storageFor(lowering, node);
  writeAll(scope, node, node.axes, (
    at,
  ) => [
    storeTo(scope, storage, at, computeValue(scope, node, at)),
  ]);
}

/** Write the value of a `cacheWrite` into its state, in place. */
export function lowerCacheWrite(
  lowering: Lowering,
  node: NodeOf<"cacheWrite">,
): void {
  const [state, value, sequence, position] = node.inputs as [
    Node,
    Node,
    Node,
    Node,
  ];
  const scope = new KernelScope(lowering);
  const storage = lowering.values.storages.get(state) as Storage;
  const [sequenceAxis, contextAxis] = state.axes as [string, string];
  writeAll(scope, node, value.axes, (at) => {
    const indices: { [axis: string]: Expr } = {
      [sequenceAxis]: emitIndex(scope, sequence, at),
      [contextAxis]: emitIndex(scope, position, at),
    };
    const there: At = { get: (axis) => indices[axis] ?? at.get(axis) };
    return [
      storeTo(scope, storage, there, emitValue(scope, value, at)),
    ];
  });
  amendBuffer(lowering, storage.buffer, {
    written: { [MAIN]: "before reads" },
  });
  lowering.values.storages.set(node, storage);
}

function emitIndex(
  scope: KernelScope,
  node: Node,
  at: At,
): Expr {
  const value = emitValue(scope, node, at);
  return value.type === "u32"
    ? value
    : { op: "convert", type: "u32", a: value };
}

/** An output of its own for a value that is stored elsewhere: an input, a parameter, dispatched rows or a packed layout. */
export function lowerOutputCopy(
  lowering: Lowering,
  name: string,
  node: Node,
): string {
  const dtype = storedDType(node.dtype);
  const buffer = addBuffer(lowering, {
    name: freshName(lowering, name),
    kind: "output",
    dtype,
    axes: bufferAxes(lowering, node.axes),
  });
  copyTo(lowering, node, { buffer, dtype, axes: node.axes });
  return buffer;
}

/** Write the value of a stored node into another place. */
export function copyTo(lowering: Lowering, node: Node, storage: Storage): void {
  const scope = new KernelScope(lowering);
  writeAll(scope, node, storage.axes, (at) => [
    storeTo(scope, storage, at, emitValue(scope, node, at)),
  ]);
}

/** A buffer that has the elements of a stored node row-major over `axes`, four bytes each: its own, or that of a copy. */
export function rowMajorBuffer(
  lowering: Lowering,
  node: Node,
  axes: readonly string[],
): string {
  return rowMajorStorage(lowering, node, axes).buffer;
}

/** The same, with what else is known of it. */
export function rowMajorStorage(
  lowering: Lowering,
  node: Node,
  axes: readonly string[],
): Storage {
  const found = lowering.values.storages.get(node);
  invariant(found, `'${node.primitive}' is not stored`);
  const dtype = storedDType(node.dtype);
  const plain = isPlain(found) && found.dtype === dtype &&
    found.axes.join() === axes.join();
  if (plain) return found;
  const buffer = addScratch(
    lowering,
    "ordered",
    dtype,
    bufferAxes(lowering, axes),
  );
  markPartial(lowering, node, buffer);
  const storage = { buffer, dtype, axes };
  copyTo(lowering, node, storage);
  return storage;
}
