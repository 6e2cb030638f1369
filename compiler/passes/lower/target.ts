/** What a kernel writes when its own result is known: that, or what follows it element by element. */

import { div, rem } from "../../../spec/kernel/build.ts";
import type { Expr, Stmt } from "../../../spec/kernel/tree.ts";
import type { Node, NodeOf } from "../../graph/graph.ts";
import { type At, atFlat, atMapped, flatIndex } from "./at.ts";
import {
  amendBuffer,
  lengthOf,
  type Lowering,
  MAIN,
  type Storage,
} from "./context.ts";
import { computeValue, emitValue, finish, storeTo } from "./emit.ts";
import type { KernelScope } from "./scope.ts";
import { storageFor } from "./storage.ts";

/** What a kernel writes: the value of `node`, given what it computed for `roots`. */
export interface Target {
  readonly node: Node;
  readonly storage: Storage;
  readonly roots: readonly Node[];
}

/** Where the value of a target goes: a buffer of its own, or the state that it is written into in place. */
export function targetStorage(lowering: Lowering, node: Node): Storage {
  if (node.primitive !== "cacheWrite") return storageFor(lowering, node);
  const storage = lowering.values.storages.get(node.inputs[0]!)!;
  amendBuffer(lowering, storage.buffer, {
    written: { [MAIN]: "before reads" },
  });
  lowering.values.storages.set(node, storage);
  return storage;
}

/** Store the value of a target at a place of its first root; `values` are those of its roots, there or at any place of the row. */
export function writeTarget(
  scope: KernelScope,
  { node, storage, roots }: Target,
  at: At,
  values: readonly (Expr | ((at: At) => Expr))[],
): Stmt[] {
  const known = new Map(
    roots.map((root, i) => {
      const value = values[i]!;
      return [
        root,
        typeof value === "function"
          ? (at: At) => finish(root, value(at))
          : finish(root, scope.bindValue(value)),
      ] as const;
    }),
  );
  if (node.primitive === "cacheWrite") {
    const there = splitAt(scope, at, { from: roots[0]!, to: node.inputs[1]! });
    const value = emitValue(scope, node.inputs[1]!, there, known);
    return [storeTo(scope, storage, placeInCache(scope, node, there), value)];
  }
  const there = splitAt(scope, at, { from: roots[0]!, to: node });
  const valueOf = known.has(node) ? emitValue : computeValue;
  const value = valueOf(scope, node, there, known);
  return [storeTo(scope, storage, there, value)];
}

/** Where the value at a place is written in its cache: in the sequence of its token, at the token's position, or in the page that has it. */
export function placeInCache(
  scope: KernelScope,
  node: NodeOf<"cacheWrite">,
  at: At,
): At {
  const [state, , sequence, position, pages] = node.inputs as [
    ...[Node, Node, Node, Node, Node?],
  ];
  const [outer, inner] = state.axes as [string, string];
  const place = [sequence, position].map((of) => emitIndex(scope, of, at));
  if (pages) {
    const [s, p] = place.map((index) => scope.bindValue(index));
    const within = lengthOf(scope, inner);
    const [sequenceAxis, blockAxis] = pages.axes as [string, string];
    const block = { [sequenceAxis]: s!, [blockAxis]: div(p!, within) };
    place[0] = emitIndex(scope, pages, atMapped((axis) => block[axis]!));
    place[1] = rem(p!, within);
  }
  const indices = { [outer]: place[0], [inner]: place[1] };
  return atMapped((axis) => indices[axis] ?? at.get(axis));
}

function emitIndex(scope: KernelScope, node: Node, at: At): Expr {
  const value = emitValue(scope, node, at);
  return value.type === "u32"
    ? value
    : { op: "convert", type: "u32", a: value };
}

/** A place of `from` under the axes of `to`, which has the last axes of `from` in parts. */
function splitAt(
  scope: KernelScope,
  at: At,
  { from, to }: { readonly from: Node; readonly to: Node },
): At {
  const outer = to.axes.filter((axis) => from.axes.includes(axis));
  if (outer.length === to.axes.length) return at;
  const length = (axis: string) => lengthOf(scope, axis);
  const whole = from.axes.filter((axis) => !to.axes.includes(axis));
  const parts = to.axes.filter((axis) => !from.axes.includes(axis));
  const index = scope.bindValue(flatIndex(at, whole, length));
  const within = atFlat(parts, index, length);
  return {
    ...at.flat && at.flat.order.join() === from.axes.join()
      ? { flat: { order: to.axes, index: at.flat.index } }
      : {},
    get: (axis) => (parts.includes(axis) ? within : at).get(axis),
  };
}
