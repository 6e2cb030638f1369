/** Elementwise kernels: any expression over stored values, one invocation per element. */

import { storedDType } from "../../../spec/dtype.ts";
import { div, load, mul, rem, u32 } from "../../../spec/kernel/build.ts";
import type { Expr, Stmt } from "../../../spec/kernel/tree.ts";
import type { Size } from "../../../spec/size.ts";
import type { Node, NodeOf } from "../../graph/graph.ts";
import { elementwise, elementwiseGrid } from "../../kernels/elementwise.ts";
import { type At, atFlat } from "./at.ts";
import {
  addBuffer,
  addLaunch,
  bufferAxes,
  fixedProduct,
  freshName,
  lengthOf,
  type Lowering,
  productOf,
  sizeOf,
  type Storage,
} from "./context.ts";
import { atRow, computeValue, emitValue, storeTo } from "./emit.ts";
import { KernelScope } from "./scope.ts";
import { storageFor } from "./storage.ts";

/** Store a node that is an expression over stored ones. */
export function lowerElementwise(lowering: Lowering, node: Node): void {
  const route = lowering.dispatched.get(node);
  if (route) return lowerRows(lowering, node, route);
  const scope = new KernelScope(lowering);
  const storage = storageFor(lowering, node);
  writeAll(scope, node, node.axes, (
    at,
  ) => [
    storeTo(scope, storage, at, computeValue(scope, node, at)),
  ]);
}

/** Run `body` at every place of `axes`. */
export function writeAll(
  scope: KernelScope,
  node: Node,
  axes: readonly string[],
  body: (at: At) => readonly Stmt[],
): void {
  const length = (axis: string) => lengthOf(scope, axis);
  const kernel = elementwise({
    name: kernelName(node),
    count: productOf(scope, axes),
    bindings: scope.bindings,
    body: (index) => scope.block(() => body(atFlat(axes, index, length))),
  });
  addLaunch(scope.lowering, node, kernel, {
    bindings: scope.buffers,
    workgroups: elementwiseGrid(sizeOf(scope.lowering, axes)),
  });
}

/** The same on dispatched rows: their number is known on the device only, so the grid covers the most there can be. */
function lowerRows(lowering: Lowering, node: Node, route: Node): void {
  const routing = lowering.routings.get(route)!;
  const scope = new KernelScope(lowering);
  const storage = storageFor(lowering, node);
  const rest = node.axes.slice(2);
  const width = fixedProduct(lowering, rest);
  const length = (axis: string) => lengthOf(scope, axis);
  const kernel = elementwise({
    name: `${kernelName(node)}_rows`,
    count: mul(receivedRows(scope, routing.rowCount), u32(width)),
    bindings: scope.bindings,
    body: (index) =>
      scope.block(() => {
        const row = scope.bindValue(div(index, u32(width)));
        const expert = load(scope.read(routing.expertOf), row, "u32");
        const at = atRow(
          atFlat(rest, rem(index, u32(width)), length),
          row,
          routing.expert,
          expert,
        );
        return [
          storeTo(scope, storage, at, computeValue(scope, node, at)),
        ];
      }),
  });
  const count: Size = { mul: [routing.receiveSize, width] };
  addLaunch(lowering, node, kernel, {
    bindings: scope.buffers,
    workgroups: elementwiseGrid(count),
  });
}

function receivedRows(scope: KernelScope, rowCount: string): Expr {
  return load(scope.read(rowCount), u32(0), "u32");
}

function kernelName(node: Node): string {
  return node.primitive === "map" ? node.params.verb : node.primitive;
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
  const storage = lowering.storages.get(state) as Storage;
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
  lowering.storages.set(node, storage);
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

/** An output of its own for a value that lies elsewhere: an input, a parameter, dispatched rows or a packed layout. */
export function lowerOutputCopy(
  lowering: Lowering,
  name: string,
  node: Node,
): string {
  const scope = new KernelScope(lowering);
  const dtype = storedDType(node.dtype);
  const buffer = addBuffer(lowering, {
    name: freshName(lowering, name),
    kind: "output",
    dtype,
    axes: bufferAxes(lowering, node.axes),
  });
  const storage: Storage = { buffer, dtype, axes: node.axes };
  writeAll(scope, node, node.axes, (at) => [
    storeTo(scope, storage, at, emitValue(scope, node, at)),
  ]);
  return buffer;
}
