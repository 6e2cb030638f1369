/** Elementwise kernels: an expression over stored values, one invocation per element. */

import { type HalfDType, isHalf, storedDType } from "../../../spec/dtype.ts";
import { invariant } from "../../../spec/errors.ts";
import {
  add,
  binary,
  div,
  i32,
  if_,
  mul,
  packBits,
  store,
  u32,
} from "../../../spec/kernel/build.ts";
import type { Expr } from "../../../spec/kernel/tree.ts";
import { elementwise } from "../../../spec/kernel/elementwise.ts";
import { type At, atWith } from "./indices.ts";
import type { Node, NodeOf } from "../../graph/graph.ts";
import {
  addBuffer,
  addScratch,
  freshName,
  type Lowering,
  type Storage,
} from "./context.ts";
import { computeValue, emitValue, indexIn, storeTo } from "./emit.ts";
import { indexGrid, indexSpaceOf, writeAll } from "./index_space.ts";
import { KernelScope } from "./scope.ts";
import { targetStorage, writeCache } from "./epilogue.ts";
import { isPlain, markUnreduced, storageFor } from "./storage.ts";

/** Stores a node that is an expression over stored values. */
export function lowerElementwise(lowering: Lowering, node: Node): void {
  const scope = new KernelScope(lowering);
  const storage = storageFor(lowering, node);
  writeAll(scope, node, node.axes, (
    at,
  ) => [
    storeTo(scope, storage, at, computeValue(scope, node, at)),
  ]);
}

/** Writes the value of a `cacheWrite` into its state, in place. */
export function lowerCacheWrite(
  lowering: Lowering,
  node: NodeOf<"cacheWrite">,
): void {
  const value = node.inputs[1]!;
  const scope = new KernelScope(lowering);
  const storage = targetStorage(lowering, node);
  const { dtype } = storage;
  if (isHalf(dtype)) return writeHalves(scope, node, { ...storage, dtype });
  const { axes, valueAt } = writtenTokens(node);
  writeAll(scope, node, axes, (index) => {
    const at = valueAt(index);
    const stored = () =>
      writeCache(scope, node, at, (cell) => [
        storeTo(scope, storage, cell, emitValue(scope, value, at)),
      ]);
    if (!node.params.sparse) return stored();
    const position = emitValue(scope, node.inputs[3]!, at);
    return [if_(binary("ge", position, i32(0)), scope.block(stored))];
  });
}

/** The index space of a value that a cache write stores. For gathered keys, it contains only tokens that read them. */
function writtenTokens({ inputs }: NodeOf<"cacheWrite">): {
  readonly axes: readonly string[];
  readonly valueAt: (at: At) => At;
} {
  const [, { axes }, { axes: [token] }, , table] = inputs as [
    ...[Node, Node, Node, Node, Node?],
  ];
  if (table?.primitive !== "keyTable") return { axes, valueAt: (at) => at };
  const { gathered } = table.params;
  return {
    axes: axes.map((axis) => axis === token ? gathered : axis),
    valueAt: (at) => atWith(at, token!, () => at.get(gathered)),
  };
}

/** Writes two elements at a time into a 16-bit cache. */
function writeHalves(
  scope: KernelScope,
  node: NodeOf<"cacheWrite">,
  storage: Storage & { readonly dtype: HalfDType },
): void {
  const value = node.inputs[1]!;
  const { axes, valueAt } = writtenTokens(node);
  const space = indexSpaceOf(scope, node, axes);
  const bitsAt = (at: At): Expr =>
    packBits(storage.dtype, scope.bindValue(emitValue(scope, value, at)));
  const kernel = elementwise({
    name: `cacheWrite_${storage.dtype}`,
    count: div(space.count, u32(2)),
    bindings: scope.bindings,
    body: (word) =>
      scope.block(() => {
        const first = scope.bindValue(mul(word, u32(2)));
        const [low, high] = [first, add(first, u32(1))].map((index) =>
          bitsAt(valueAt(space.at(index)))
        );
        const both = binary("or", low!, binary("shl", high!, u32(16)));
        return writeCache(scope, node, valueAt(space.at(first)), (cell) => {
          const index = div(indexIn(scope, storage, cell), u32(2));
          return [store(scope.write(storage.buffer), index, both)];
        });
      }),
  });
  scope.launch(node, kernel, indexGrid(space, 2));
}

/**
 * A separate output for a value that is stored elsewhere: an input, a parameter, dispatched rows or a packed layout.
 */
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
    axes: node.axes,
  });
  copyTo(lowering, node, { buffer, dtype, axes: node.axes });
  return buffer;
}

/** Copies the value of a stored node. */
export function copyTo(lowering: Lowering, node: Node, storage: Storage): void {
  const scope = new KernelScope(lowering);
  writeAll(scope, node, storage.axes, (at) => [
    storeTo(scope, storage, at, emitValue(scope, node, at)),
  ]);
}

/** A buffer with the elements of a stored node, row-major over `axes`, four bytes each: its own buffer or a copy. */
export function rowMajorBuffer(
  lowering: Lowering,
  node: Node,
  axes: readonly string[],
): string {
  return rowMajorStorage(lowering, node, axes).buffer;
}

/** The same, with its other storage facts. */
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
  const buffer = addScratch(lowering, "ordered", dtype, axes);
  markUnreduced(lowering, node, buffer);
  const storage = { buffer, dtype, axes };
  copyTo(lowering, node, storage);
  return storage;
}
