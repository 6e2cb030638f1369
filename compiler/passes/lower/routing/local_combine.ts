/** Pre-sums the rows of each token on the rank of its experts, so that one row returns. */

import { invariant } from "../../../../spec/errors.ts";
import { storedDType } from "../../../../spec/dtype.ts";
import { load, store, u32 } from "../../../../spec/kernel/build.ts";
import type { Node, NodeOf } from "../../../graph/graph.ts";
import { elementwiseGrid } from "../../../../spec/kernel/elementwise.ts";
import { bindings } from "../../../kernels/kernel.ts";
import { combine } from "../../../kernels/routing/permute.ts";
import { partOf } from "./assign.ts";
import {
  addLaunch,
  addScratch,
  fixedProduct,
  type Lowering,
} from "../context.ts";
import { finish } from "../emit.ts";
import { markUnreduced } from "../storage.ts";

/** One row per received token of a chunk. */
export function lowerLocalCombine(
  lowering: Lowering,
  node: NodeOf<"localCombine">,
): void {
  const [y, group] = node.inputs as [Node, Node];
  const grouped = lowering.values.groups.get(group)!;
  const { received, tokens, rowCount } = grouped;
  const { sent, tokenBound, tokenSize } = received;
  const [lists, rows] = [sent.tokens?.lists, tokens?.rows];
  invariant(lists && rows, "a routing lists the rows that are added up");
  const [expert, slot, ...rest] = node.axes;
  const width = fixedProduct(lowering, node, rest);
  const dtype = storedDType(node.dtype);
  const buffer = addScratch(lowering, "sums", dtype, [
    { axis: `${expert} ${slot}`, size: tokenBound, dynamic: true },
    ...rest,
  ]);
  markUnreduced(lowering, node, buffer);
  const kernel = combine({
    name: `local_combine_${width}`,
    row: width,
    k: lists.maxChoices,
    tokens: load("rowCount", u32(1), "u32"),
    listed: true,
    weighed: node.params.weighted,
    bindings: bindings(
      { rowCount: "u32", sendRow: "u32", returned: "f32" },
      { y: "f32" },
    ),
    epilogue: (i, sum) => [store("y", i, finish(node as Node, sum))],
  });
  addLaunch(lowering, node, kernel, {
    bindings: {
      rowCount,
      sendRow: rows,
      y: buffer,
      returned: lowering.values.storages.get(y)!.buffer,
    },
    workgroups: elementwiseGrid({ mul: [tokenSize, width] }),
    part: partOf(sent, "sum", "combine"),
  });
  lowering.values.storages.set(node, { buffer, dtype, axes: rest });
}
