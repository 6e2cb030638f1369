/**
 * Partial sums made whole: every rank of a group gets the parts of all, and adds them as a balanced binary tree in the order
 * of group ranks, so that all of them get the same bits.
 */

import { positionsOver } from "../../../spec/mesh.ts";
import { onRank } from "../../../spec/plan.ts";
import { add, load, mul, u32 } from "../../../spec/kernel/build.ts";
import type { Node, NodeOf } from "../../graph/graph.ts";
import { addParts } from "../../kernels/add_parts.ts";
import { elementwiseGrid } from "../../kernels/elementwise.ts";
import { about, addLaunch, addScratch, type Lowering } from "./context.ts";
import { writeTarget } from "./dot.ts";
import { copyTo, rowMajorBuffer } from "./elementwise.ts";
import { ownAxes } from "./params.ts";
import { placesOf } from "./places.ts";
import { KernelScope } from "./scope.ts";
import { markPartial, storageFor } from "./storage.ts";

/** All of a sum: a gather of its parts, and a launch that adds them. */
export function lowerAllReduce(
  lowering: Lowering,
  node: NodeOf<"allReduce">,
): void {
  const [x] = node.inputs as [Node];
  const { over } = node.params;
  const positions = positionsOver(lowering.placed.mesh, over);
  const { from, words } = partsOf(lowering, x);
  const parts = addScratch(lowering, "parts", "f32", [
    { axis: "position", size: positions },
    { axis: "element of a part", size: words },
  ]);
  lowering.steps.push({
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

/** A buffer of one length on all ranks that begins with a rank's part: its own, or a copy where ranks hold different numbers of experts. */
function partsOf(
  lowering: Lowering,
  x: Node,
): { readonly from: string; readonly words: number } {
  const plain = rowMajorBuffer(lowering, x, x.axes);
  const { bytes } = lowering.buffers.get(plain)!;
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
  const own = ownAxes(lowering, x);
  copyTo(lowering, x, { buffer: from, dtype: "f32", axes: x.axes, own });
  return { from, words };
}
