/**
 * Attention of a step of one token on a wide device: the launch over blocks of keys also normalizes and rotates query
 * and key, and writes the cache of keys, because another launch costs more. Steps of more tokens keep the separate
 * launches.
 */

import { add, let_, local, mul, u32 } from "../../../spec/kernel/build.ts";
import { range } from "../../../spec/range.ts";
import type { Size } from "../../../spec/size.ts";
import type { Node, NodeOf } from "../../graph/graph.ts";
import { usersOf } from "../../graph/users.ts";
import type { AttentionOptions } from "../../kernels/attention/block.ts";
import {
  NEW_SQUARES,
  type NewToken,
  type NewVector,
} from "../../kernels/attention/new_token.ts";
import { attentionParts } from "../../kernels/attention/split.ts";
import { madeOnce } from "../../kernels/kernel.ts";
import { ADJACENT } from "../../kernels/pieces/adjacent.ts";
import { SUM_BLOCK } from "../../kernels/pieces/blocked_sum.ts";
import { splitGrids, splitTile } from "../../tuning/queries.ts";
import { FUSION_CLASS } from "../fuse.ts";
import { sharedBytes } from "../limits.ts";
import { adjacentOf } from "./adjacent.ts";
import type { Lowering } from "./context.ts";
import {
  computeValue,
  emitValue,
  finish,
  type Known,
  loadFrom,
  storeTo,
} from "./emit.ts";
import { writeCache } from "./epilogue.ts";
import type { At } from "./indices.ts";
import { forRows } from "./matmul/inline_norms.ts";
import { keepForMore } from "./routing/one_token.ts";
import { KernelScope } from "./scope.ts";
import { isPlain } from "./storage.ts";
import { changeWriters, readsOf, writesOf } from "./writers.ts";

/** A split attention: the buffers of its operands and of the sums of its blocks. */
interface SplitAttention {
  readonly options: AttentionOptions;
  readonly operands: { readonly [binding: string]: string };
  readonly sums: { readonly tops: string; readonly sums: string };
  readonly tokens: Size;
}

/**
 * Launches the blocks of keys of one token, and the steps that it replaces for more tokens only. Returns whether it
 * does: not if other nodes need the vectors of the token, or the kernel does not fit the device.
 */
export function lowerNewToken(
  lowering: Lowering,
  node: NodeOf<"attention">,
  { options, operands, sums, tokens }: SplitAttention,
): boolean {
  const { tuning, maxBindings, maxShared } = lowering.options;
  const { shard, selected, entries, pages, stored = "f32" } = options;
  const isUsual = tuning.wideRows === true && typeof tokens !== "number" &&
    stored === "f32" && options.dim % SUM_BLOCK === 0 && !options.shared &&
    // Positions of a page have neighbours.
    (pages?.size ?? 2) % 2 === 0 &&
    [shard, selected, entries].every((of) => of === undefined);
  const isStored = (["q", "keys", "values"] as const).every((name, i) =>
    operands[name] === lowering.values.storages.get(node.inputs[i]!)!.buffer
  );
  if (!isUsual || !isStored) return false;
  const scope = new KernelScope(lowering);
  for (const name of ["sequence", "position", "pages"]) {
    const buffer = operands[name];
    if (buffer !== undefined) scope.readAs(name, buffer);
  }
  scope.writeAs("keys", operands["keys"]!);
  scope.readAs("values", operands["values"]!);
  const vectors = vectorsOf(scope, node, options.dim);
  if (!vectors) return false;
  const tile = splitTile(options);
  const token: NewToken = { ...vectors, bindings: scope.bindings };
  const kernel = madeOnce(
    [options, tile, token],
    () => attentionParts(options, tile, token),
  );
  const written = [operands["q"]!, operands["keys"]!];
  const replaced = replacedSteps(lowering, written);
  const fits = kernel.bindings.length <= maxBindings &&
    sharedBytes(kernel) <= maxShared;
  if (!replaced || !fits) return false;
  changeWriters(lowering, [operands["keys"]!, ...Object.values(sums)], 1);
  keepForMore(lowering, replaced, tokens);
  for (const [name, buffer] of Object.entries(sums)) {
    scope.writeAs(name, buffer);
  }
  const { few } = forRows(tokens, { rows: tokens });
  scope.launch(node, kernel, splitGrids(options, few).parts);
  return true;
}

/**
 * The query and key of the token. Undefined: a kernel for them does not exist, others read them, or another launch is
 * necessary for the value.
 */
function vectorsOf(
  scope: KernelScope,
  node: NodeOf<"attention">,
  dim: number,
): Omit<NewToken, "bindings"> | undefined {
  const [q, keys, values] = node.inputs as [Node, Node, Node];
  const { lowering } = scope;
  const { model: { graph, fusion }, placed, values: { storages } } = lowering;
  const usersFor = (of: Node) => usersOf(graph).get(of)!;
  const isWritten = (cache: Node): cache is NodeOf<"cacheWrite"> =>
    cache.primitive === "cacheWrite" && !cache.params.sparse &&
    usersFor(cache).every((user) =>
      user === node || user.primitive !== "attention"
    );
  const byProjection = fusion.absorbs.get(values)?.[0]?.primitive === "dot";
  if (!isWritten(keys) || !byProjection) return undefined;
  const value = keys.inputs[1]!;
  if (value.primitive === "concat") return undefined;
  const query = computedInView(lowering, q);
  const key = computedBy(lowering, { target: keys, value });
  if (!query || !key || !isOnlyFor(q, query.node, usersFor)) return undefined;
  const norms = [query.norm, key.norm].filter((norm) => norm !== undefined);
  const [norm] = norms;
  const isEven = norms.length !== 1 &&
    norms.every(({ params }) =>
      params.epsilon === norm!.params.epsilon &&
      placed.axes[params.over]!.size === dim
    );
  if (!isEven) return undefined;
  const element = local("new_element", "f32");
  return {
    ...norm ? { epsilon: norm.params.epsilon } : {},
    query: vectorOf(scope, q, query),
    key: vectorOf(scope, value, key),
    store: scope.block(() =>
      writeCache(scope, keys, elementAt(value), (cell) => [
        storeTo(scope, storages.get(keys)!, cell, element),
      ])
    ),
  };
}

/** Whether each node from `from` to its view `to` has one user. */
function isOnlyFor(
  to: Node,
  from: Node,
  usersFor: (node: Node) => readonly Node[],
): boolean {
  for (let x = to;; x = x.inputs[0]!) {
    if (usersFor(x).length > 1) return false;
    if (x === from) return true;
  }
}

/** A value that one launch stores: its node without views, and the norm that this launch computes. */
interface Computed {
  readonly node: Node;
  readonly norm?: NodeOf<"rmsNorm">;
}

/** How a launch computes `value`, or the value that it is a view of. Undefined as for `computedBy`. */
function computedInView(lowering: Lowering, value: Node): Computed | undefined {
  let node = value;
  while (FUSION_CLASS[node.primitive] === "view") node = node.inputs[0]!;
  return FUSION_CLASS[node.primitive] === "inline"
    ? computedBy(lowering, { target: node, value: node })
    : undefined;
}

/**
 * How the launch of `target` computes `value`. Undefined: by more than elementwise nodes and a norm of its rows, or its
 * dtype is not f32.
 */
function computedBy(
  { model: { fusion } }: Lowering,
  { target, value: { axes, dtype } }: {
    readonly target: Node;
    readonly value: Node;
  },
): Computed | undefined {
  if (dtype !== "f32" || fusion.chains.has(target)) return undefined;
  const [root] = fusion.absorbs.get(target) ?? [];
  if (!root) return { node: target };
  const isNorm = root.primitive === "rmsNorm" && root.dtype === "f32" &&
    root.axes.join() === axes.join() && root.axes.at(-1) === root.params.over;
  return isNorm ? { node: target, norm: root } : undefined;
}

/** Element `new_d` of head `new_head`, or another one of it. */
function elementAt(
  { axes }: Node,
  element = local("new_d", "u32"),
): At {
  const [token] = axes;
  return {
    get: (axis) =>
      axis === token
        ? u32(0)
        : axis === axes.at(-1)
        ? element
        : local("new_head", "u32"),
  };
}

/** The statements that compute a vector. */
function vectorOf(
  scope: KernelScope,
  value: Node,
  { node, norm }: Computed,
): NewVector {
  const known = new Map<Node, (at: At) => ReturnType<typeof emitValue>>();
  if (norm) {
    const [x, gain] = norm.inputs as [Node, Node];
    const { storages } = scope.lowering.values;
    known.set(norm, (at) => {
      const scaled = mul(emitValue(scope, x, at), local("new_scale", "f32"));
      return finish(
        norm,
        mul(loadFrom(scope, storages.get(gain)!, at), scaled),
      );
    });
  }
  for (let x = value; node !== x && x.inputs[0]; x = x.inputs[0]) {
    if (FUSION_CLASS[x.primitive] !== "view") break;
    known.set(x, (at) => computeValue(scope, x, at, known as Known));
  }
  if (FUSION_CLASS[node.primitive] === "inline") {
    known.set(node, (at) => computeValue(scope, node, at, known as Known));
  }
  return {
    block: norm ? scope.block(() => squaresOf(scope, norm)) : [],
    element: scope.block(() => [
      let_("new_element", emitValue(scope, value, elementAt(value), known)),
    ]),
  };
}

/** Declares the elements of a block that a norm squares. */
function squaresOf(scope: KernelScope, { inputs: [x] }: NodeOf<"rmsNorm">) {
  const storage = scope.lowering.values.storages.get(x!);
  const { size } = scope.lowering.placed.axes[x!.axes.at(-1)!]!;
  const first = local("new_first", "u32");
  const adjacent = storage && isPlain(storage) && !storage.packed &&
      !storage.wire && storage.axes.join() === x!.axes.join()
    ? adjacentOf(scope, storage, size)
    : undefined;
  if (!adjacent) {
    return NEW_SQUARES.map((name, n) =>
      let_(name, emitValue(scope, x!, elementAt(x!, add(first, u32(n)))))
    );
  }
  const row = mul(local("new_head", "u32"), u32(size));
  return range(SUM_BLOCK / ADJACENT).flatMap((n) =>
    adjacent(
      row,
      add(first, u32(n * ADJACENT)),
      NEW_SQUARES.slice(n * ADJACENT, (n + 1) * ADJACENT),
    )
  );
}

/**
 * Indices of the last steps that write these buffers, which a launch at the end replaces. Undefined if a step between
 * reads one of them.
 */
function replacedSteps(
  lowering: Lowering,
  buffers: readonly string[],
): number[] | undefined {
  const { steps } = lowering.draft;
  const missing = new Set(buffers);
  const found: number[] = [];
  for (let i = steps.length - 1; i >= 0 && missing.size > 0; i--) {
    const step = steps[i]!;
    const writes = writesOf(lowering, step);
    if (writes.some((name) => buffers.includes(name))) {
      found.unshift(i);
      for (const name of writes) missing.delete(name);
    } else if (readsOf(lowering, step).some((name) => buffers.includes(name))) {
      return undefined;
    }
  }
  return missing.size === 0 ? found : undefined;
}
