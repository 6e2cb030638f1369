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
import type { Expr, Kernel } from "../../../spec/kernel/tree.ts";
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
import {
  indexGrid,
  type IndexSpace,
  indexSpaceOf,
  kernelAt,
  writeAll,
} from "./index_space.ts";
import { kernelOnce } from "./kernel_once.ts";
import { KernelScope } from "./scope.ts";
import { targetStorage, writeCache } from "./epilogue.ts";
import { isPlain, markUnreduced, storageFor } from "./storage.ts";

/** Stores a node that is an expression over stored values. */
export function lowerElementwise(lowering: Lowering, node: Node): void {
  const scope = new KernelScope(lowering);
  const storage = storageFor(lowering, node);
  const space = indexSpaceOf(scope, node);
  const kernel = kernelOnce(scope, [node], {
    storage,
    make: () =>
      kernelAt(scope, node, space, (at) => [
        storeTo(scope, storage, at, computeValue(scope, node, at)),
      ]),
  });
  scope.launch(node, kernel, indexGrid(space));
}

/** A cache write, and the index space of its value. */
interface Write {
  readonly scope: KernelScope;
  readonly node: NodeOf<"cacheWrite">;
  readonly storage: Storage;
  readonly space: IndexSpace;
  /** The index of the value. */
  readonly at: (index: At) => At;
}

/** Writes the value of a `cacheWrite` into its state, in place. */
export function lowerCacheWrite(
  lowering: Lowering,
  node: NodeOf<"cacheWrite">,
): void {
  const scope = new KernelScope(lowering);
  const storage = targetStorage(lowering, node);
  const { axes, at } = writtenTokens(node);
  const space = indexSpaceOf(scope, node, axes);
  const write: Write = { scope, node, storage, space, at };
  const { dtype } = storage;
  const kernel = kernelOnce(scope, [node], {
    storage,
    make: () => isHalf(dtype) ? writeHalves(write, dtype) : writeCells(write),
  });
  scope.launch(node, kernel, indexGrid(space, isHalf(dtype) ? 2 : 1));
}

/** Writes one element at a time. */
function writeCells({ scope, node, storage, space, at }: Write): Kernel {
  const [, value, , position] = node.inputs as [Node, Node, Node, Node];
  return kernelAt(scope, node, space, (index) => {
    const from = at(index);
    const stored = () =>
      writeCache(scope, node, from, (cell) => [
        storeTo(scope, storage, cell, emitValue(scope, value, from)),
      ]);
    if (!node.params.sparse) return stored();
    const isWritten = binary("ge", emitValue(scope, position, from), i32(0));
    return [if_(isWritten, scope.block(stored))];
  });
}

/** The index space of a value that a cache write stores. For gathered keys, it contains only tokens that read them. */
function writtenTokens({ inputs }: NodeOf<"cacheWrite">): {
  readonly axes: readonly string[];
  readonly at: (index: At) => At;
} {
  const [, { axes }, { axes: [token] }, , table] = inputs as [
    ...[Node, Node, Node, Node, Node?],
  ];
  if (table?.primitive !== "keyTable") return { axes, at: (index) => index };
  const { gathered } = table.params;
  return {
    axes: axes.map((axis) => axis === token ? gathered : axis),
    at: (index) => atWith(index, token!, () => index.get(gathered)),
  };
}

/** Writes two elements at a time into a 16-bit cache. */
function writeHalves(
  { scope, node, storage, space, at }: Write,
  dtype: HalfDType,
): Kernel {
  const value = node.inputs[1]!;
  const bitsAt = (at: At): Expr =>
    packBits(dtype, scope.bindValue(emitValue(scope, value, at)));
  return elementwise({
    name: `cacheWrite_${dtype}`,
    count: div(space.count, u32(2)),
    bindings: scope.bindings,
    body: (word) =>
      scope.block(() => {
        const first = scope.bindValue(mul(word, u32(2)));
        const [low, high] = [first, add(first, u32(1))].map((index) =>
          bitsAt(at(space.at(index)))
        );
        const both = binary("or", low!, binary("shl", high!, u32(16)));
        return writeCache(scope, node, at(space.at(first)), (cell) => {
          const index = div(indexIn(scope, storage, cell), u32(2));
          return [store(scope.write(storage.buffer), index, both)];
        });
      }),
  });
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
