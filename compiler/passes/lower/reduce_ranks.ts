/**
 * Partial sums made whole: every rank of a group gets the parts of all, and adds them as a balanced binary tree in the order
 * of group ranks, so that all of them get the same bits.
 */

import { positionsOver } from "../../../spec/mesh.ts";
import { addAsTree } from "../../../spec/numerics.ts";
import { onRank } from "../../../spec/plan.ts";
import { invariant } from "../../../spec/errors.ts";
import { add, binary, load, mul, u32 } from "../../../spec/kernel/build.ts";
import type { Node, NodeOf } from "../../graph/graph.ts";
import { addParts } from "../../kernels/add_parts.ts";
import { elementwiseGrid } from "../../kernels/elementwise.ts";
import { about, addLaunch, addScratch, type Lowering } from "./context.ts";
import { type At, atMapped } from "./at.ts";
import { writeTarget } from "./target.ts";
import { storeTo } from "./emit.ts";
import { copyTo, rowMajorBuffer } from "./elementwise.ts";
import {
  countedAxis,
  type GatheredRows,
  gatherRowsOf,
  loadTerm,
  ownRowsOf,
} from "./gather.ts";
import { heldIndex } from "./held.ts";
import { placesOf, writeAll } from "./places.ts";
import { KernelScope } from "./scope.ts";
import { markPartial, storageFor } from "./storage.ts";

/** All of a sum: a gather of its terms, and a launch that adds them. */
export function lowerAllReduce(
  lowering: Lowering,
  node: NodeOf<"allReduce">,
): void {
  const [x] = node.inputs as [Node];
  const rows = countedAxis(lowering, x);
  if (rows !== undefined) return addRows(lowering, node, rows);
  const { over } = node.params;
  const positions = positionsOver(lowering.placed.mesh, over);
  const { from, words } = partsOf(lowering, x);
  const parts = addScratch(lowering, "parts", "f32", [
    { axis: "position", size: positions },
    { axis: "element of a part", size: words },
  ]);
  lowering.draft.steps.push({
    op: "allGather",
    ranks: "all",
    ...{ over, from, to: parts },
    bytes: words * 4,
    ...about(lowering, node),
  });
  const scope = new KernelScope(lowering);
  const storage = storageFor(lowering, node);
  const places = placesOf(scope, node);
  const binding = scope.read(parts);
  const kernel = addParts({
    name: `add_parts_${positions}`,
    count: places.count,
    parts: positions,
    bindings: scope.bindings,
    load: (i, k) => load(binding, add(mul(k, u32(words)), i)),
    epilogue: (i, sum) =>
      scope.block(() =>
        writeTarget(scope, { node, storage, roots: [node] }, places.at(i), [
          sum,
        ])
      ),
  });
  addLaunch(lowering, node, kernel, {
    bindings: scope.buffers,
    workgroups: elementwiseGrid(places.size),
  });
}

/** A rank's part of a sum: of rows that are counted at run time. Where lengths are fixed, `bucket.ts` does it. */
export function lowerReduceScatter(
  lowering: Lowering,
  node: NodeOf<"reduceScatter">,
): void {
  const rows = countedAxis(lowering, node.inputs[0]!);
  invariant(
    rows !== undefined,
    "a reduce-scatter of fixed lengths is in no bucket",
  );
  if (rows !== node.params.axis) return addRows(lowering, node, rows);
  addTerms(lowering, node, ownRowsOf(lowering, node), (_, at) => at);
}

/** Gather the terms of rows, and add those of the places that the rank is given. */
function addRows(
  lowering: Lowering,
  node: NodeOf<"allReduce"> | NodeOf<"reduceScatter">,
  rows: string,
): void {
  const { params } = node;
  addTerms(lowering, node, gatherRowsOf(lowering, node, rows), (scope, at) => {
    if (!("axis" in params)) return at;
    const held = { from: params.axis, to: params.to };
    const item = scope.bindValue(heldIndex(scope, held, at.get(params.to)));
    return atMapped((axis) => axis === params.axis ? item : at.get(axis));
  });
}

/** Add the terms of all ranks as a tree; `there` is where a place of the result is in what a rank gave. */
function addTerms(
  lowering: Lowering,
  node: NodeOf<"allReduce"> | NodeOf<"reduceScatter">,
  gathered: GatheredRows,
  there: (scope: KernelScope, at: At) => At,
): void {
  const positions = positionsOver(lowering.placed.mesh, node.params.over);
  const storage = storageFor(lowering, node);
  const scope = new KernelScope(lowering);
  writeAll(scope, node, node.axes, (at) => {
    const place = there(scope, at);
    const terms = Array.from(
      { length: positions },
      (_, p) => scope.bindValue(loadTerm(scope, gathered, u32(p), place)),
    );
    const sum = addAsTree(terms, (a, b) => binary("add", a, b));
    return [storeTo(scope, storage, at, sum)];
  });
}

/** A buffer of one length on all ranks that begins with a rank's part: its own, or a copy where ranks hold different numbers of experts. */
function partsOf(
  lowering: Lowering,
  x: Node,
): { readonly from: string; readonly words: number } {
  const plain = rowMajorBuffer(lowering, x, x.axes);
  const { bytes } = lowering.draft.buffers.get(plain)!;
  const most = Math.max(
    ...Array.from(
      { length: lowering.placed.ranks },
      (_, r) => onRank(bytes, r),
    ),
  );
  const words = most / 4;
  if (typeof bytes === "number") return { from: plain, words };
  const from = addScratch(lowering, "padded", "f32", [
    { axis: "element of a part", size: words },
  ]);
  markPartial(lowering, x, from);
  copyTo(lowering, x, { buffer: from, dtype: "f32", axes: x.axes });
  return { from, words };
}
