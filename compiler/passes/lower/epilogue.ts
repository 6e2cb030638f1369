/** Epilogues: the elementwise ops that a kernel applies to its result before the store. */

import {
  binary,
  convert,
  div,
  if_,
  mul,
  rem,
  sub,
} from "../../../spec/kernel/build.ts";
import type { Expr, Kernel, Stmt } from "../../../spec/kernel/tree.ts";
import type { Node, NodeOf } from "../../graph/graph.ts";
import { type At, atFlat, atJoined, flatIndex } from "./indices.ts";
import {
  amendBuffer,
  lengthOf,
  type Lowering,
  MAIN,
  partOf,
  type Storage,
} from "./context.ts";
import { computeValue, emitValue, finish, storeTo } from "./emit.ts";
import { indexGrid, type IndexSpace, indexSpaceOf } from "./index_space.ts";
import { KernelScope } from "./scope.ts";
import { storageFor } from "./storage.ts";

/** Target of a kernel: the value of `node`, computed from the results for `roots`. */
export interface Target {
  readonly scope: KernelScope;
  readonly node: Node;
  readonly storage: Storage;
  /** Nodes whose results the kernel computes first. Default: `node` itself. */
  readonly roots?: readonly Node[];
}

/** A kernel under construction that computes every index of a value. */
export interface Result {
  readonly scope: KernelScope;
  readonly space: IndexSpace;
  readonly storage: Storage;
  readonly epilogue: (i: Expr, value: Expr | ((at: At) => Expr)) => Stmt[];
  /** Launches it; each invocation computes this many indices. */
  readonly launch: (kernel: Kernel, cells?: number) => void;
}

/** A kernel that computes every index of `node`, with its output buffer. */
export function resultOf(lowering: Lowering, node: Node): Result {
  const scope = new KernelScope(lowering);
  const storage = storageFor(lowering, node);
  const target = { scope, node, storage };
  const space = indexSpaceOf(scope, node);
  return {
    scope,
    space,
    storage,
    epilogue: (i, value) => writeTarget(target, space.at(i), [value]),
    launch: (kernel, cells) =>
      scope.launch(node, kernel, indexGrid(space, cells)),
  };
}

/** The storage of a target: a new buffer, or the state that it updates in place. */
export function targetStorage(lowering: Lowering, node: Node): Storage {
  if (node.primitive !== "cacheWrite") return storageFor(lowering, node);
  const storage = lowering.values.storages.get(node.inputs[0]!)!;
  if (lowering.draft.buffers.get(storage.buffer)!.kind === "state") {
    amendBuffer(lowering, storage.buffer, {
      written: { [MAIN]: "before reads" },
    });
  }
  lowering.values.storages.set(node, storage);
  return storage;
}

/**
 * Stores the value of a target at an index of its first root. `values`: values of its roots at that index or at any
 * index of the row.
 */
export function writeTarget(
  { scope, node, storage, roots = [node] }: Target,
  at: At,
  values: readonly (Expr | ((at: At) => Expr))[],
): Stmt[] {
  return scope.block(() => {
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
    const cached = node.primitive === "cacheWrite";
    const written = cached ? node.inputs[1]! : node;
    const there = splitAt(scope, at, { from: roots[0]!, to: written });
    const valueOf = cached || known.has(node) ? emitValue : computeValue;
    const value = valueOf(scope, written, there, known);
    return cached
      ? writeCache(scope, node, there, (cell) => [
        storeTo(scope, storage, cell, value),
      ])
      : [storeTo(scope, storage, there, value)];
  });
}

/**
 * Statements that write the value of a token into its cache: at its sequence and position, or in the page that contains
 * it. `write` creates them for that location. Positions on other ranks are skipped.
 */
export function writeCache(
  scope: KernelScope,
  node: NodeOf<"cacheWrite">,
  at: At,
  write: (cell: At) => Stmt[],
): Stmt[] {
  const [state, , sequence, position, pages] = node.inputs as [
    ...[Node, Node, Node, Node, Node?],
  ];
  const [outer, inner] = state.axes as [string, string];
  const within = lengthOf(scope, inner);
  // The axis of positions, or of pages of them.
  const context = pages?.axes[1] ?? inner;
  const { axes } = scope.lowering.placed;
  const isSharded = axes[context]!.over.length > 0;
  const [s, global] = [sequence, position].map((of) => {
    const found = convert("u32", emitValue(scope, of, at));
    return pages || isSharded ? scope.bindValue(found) : found;
  }) as [Expr, Expr];
  const held = (p: Expr) => {
    const indices = pages
      ? {
        [outer]: pageOf(scope, pages, [s, div(p, within)]),
        [inner]: rem(p, within),
      }
      : { [outer]: s, [inner]: p };
    return write({ get: (axis) => indices[axis] ?? at.get(axis) });
  };
  if (!isSharded) return held(global);
  const positions = (length: Expr) => pages ? mul(length, within) : length;
  const first = positions(partOf(scope, context, "start"));
  const local = scope.bindValue(sub(global, first));
  const isHeld = binary("lt", local, positions(lengthOf(scope, context)));
  return [if_(isHeld, scope.block(() => held(local)))];
}

/** The page of a block of a sequence. */
export function pageOf(
  scope: KernelScope,
  pages: Node,
  indices: readonly [sequence: Expr, block: Expr],
): Expr {
  const get = (axis: string) => indices[pages.axes.indexOf(axis)]!;
  return convert("u32", emitValue(scope, pages, { get }));
}

/** An index of `from` in the axes of `to`, which splits the last axes of `from`. */
function splitAt(
  scope: KernelScope,
  at: At,
  { from, to }: { readonly from: Node; readonly to: Node },
): At {
  const outer = to.axes.filter((axis) => from.axes.includes(axis));
  if (outer.length === to.axes.length) return at;
  const merged = from.axes.filter((axis) => !to.axes.includes(axis));
  const parts = to.axes.filter((axis) => !from.axes.includes(axis));
  const index = scope.bindValue(flatIndex(scope, merged, at));
  return {
    ...atJoined(parts, atFlat(scope, parts, index), at),
    ...at.flat && at.flat.order.join() === from.axes.join()
      ? { flat: { order: to.axes, index: at.flat.index } }
      : {},
  };
}
