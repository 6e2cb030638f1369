/**
 * All-reduce, and reduce-scatter of dynamic rows: every rank of a group receives the terms of all ranks and adds them
 * as a balanced binary tree in group rank order, so that all ranks have the same bits.
 */

import { groupSizeOf } from "../../../../spec/mesh.ts";
import { addAsTree } from "../../../../spec/numerics.ts";
import { maxOverRanks } from "../../../../spec/plan/plan.ts";
import { invariant } from "../../../../spec/errors.ts";
import { add, binary, load, mul, u32 } from "../../../../spec/kernel/build.ts";
import type { Node, NodeOf } from "../../../graph/graph.ts";
import { addParts } from "../../../kernels/add_parts.ts";
import { addAllGather, addScratch, type Lowering } from "../context.ts";
import { type At, atWith } from "../indices.ts";
import { resultOf } from "../epilogue.ts";
import { storeTo } from "../emit.ts";
import { copyTo, rowMajorBuffer } from "../elementwise.ts";
import {
  countedAxis,
  type GatheredRows,
  gatherRowsOf,
  loadTerm,
  localRowsOf,
} from "./gather.ts";
import { heldIndex } from "../shard_offset.ts";
import { writeAll } from "../index_space.ts";
import { KernelScope } from "../scope.ts";
import { markUnreduced, storageFor } from "../storage.ts";

/** All-reduce: a gather of the terms, and a launch that adds them. */
export function lowerAllReduce(
  lowering: Lowering,
  node: NodeOf<"allReduce">,
): void {
  const [x] = node.inputs as [Node];
  const rows = countedAxis(lowering, x);
  if (rows !== undefined) return addRows(lowering, node, rows);
  const { over } = node.params;
  const groupSize = groupSizeOf(lowering.placed.mesh, over);
  const { from, words } = partsOf(lowering, x);
  const parts = addScratch(lowering, "parts", "f32", [
    { axis: "groupRank", size: groupSize },
    { axis: "element of a part", size: words },
  ]);
  markUnreduced(lowering, node, parts);
  addAllGather(lowering, node, { over, from, to: parts, words });
  const { scope, space, epilogue, launch } = resultOf(lowering, node);
  const binding = scope.read(parts);
  launch(addParts({
    name: `add_parts_${groupSize}`,
    parts: groupSize,
    count: space.count,
    bindings: scope.bindings,
    epilogue,
    load: (i, k) => load(binding, add(mul(k, u32(words)), i)),
  }));
}

/** Reduce-scatter of dynamic rows. `bucket.ts` handles fixed lengths. */
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
  addTerms(lowering, node, localRowsOf(lowering, node), (_, at) => at);
}

/** Gathers the terms of rows, and adds those of the rank's own rows. */
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
    return atWith(at, params.axis, () => item);
  });
}

/** Adds the terms of all ranks as a tree. `there` maps an index of the result to the term of a rank. */
function addTerms(
  lowering: Lowering,
  node: NodeOf<"allReduce"> | NodeOf<"reduceScatter">,
  gathered: GatheredRows,
  there: (scope: KernelScope, at: At) => At,
): void {
  const groupSize = groupSizeOf(lowering.placed.mesh, node.params.over);
  const storage = storageFor(lowering, node);
  const scope = new KernelScope(lowering);
  writeAll(scope, node, node.axes, (at) => {
    const source = there(scope, at);
    const terms = Array.from(
      { length: groupSize },
      (_, p) => scope.bindValue(loadTerm(scope, gathered, u32(p), source)),
    );
    const sum = addAsTree(terms, (a, b) => binary("add", a, b));
    return [storeTo(scope, storage, at, sum)];
  });
}

/**
 * A buffer of equal length on all ranks that starts with a rank's part: its own, or a copy if ranks have different
 * numbers of experts.
 */
function partsOf(
  lowering: Lowering,
  x: Node,
): { readonly from: string; readonly words: number } {
  const plain = rowMajorBuffer(lowering, x, x.axes);
  const { bytes } = lowering.draft.buffers.get(plain)!;
  const words = maxOverRanks(bytes) / 4;
  if (typeof bytes === "number") return { from: plain, words };
  const from = addScratch(lowering, "padded", "f32", [
    { axis: "element of a part", size: words },
  ]);
  markUnreduced(lowering, x, from);
  copyTo(lowering, x, { buffer: from, dtype: "f32", axes: x.axes });
  return { from, words };
}
