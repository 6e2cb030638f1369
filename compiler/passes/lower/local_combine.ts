/** Add up the rows of each token where its experts are, so that one row returns. */

import { invariant } from "../../../spec/errors.ts";
import { storedDType } from "../../../spec/dtype.ts";
import type { Node, NodeOf } from "../../graph/graph.ts";
import { elementwiseGrid } from "../../kernels/elementwise.ts";
import { localCombine } from "../../kernels/local_combine.ts";
import { partOf } from "./assign.ts";
import {
  addLaunch,
  addScratch,
  bufferAxes,
  fixedProduct,
  type Lowering,
} from "./context.ts";
import { finish } from "./emit.ts";

/** A row for each received token of a chunk. */
export function lowerLocalCombine(
  lowering: Lowering,
  node: NodeOf<"localCombine">,
): void {
  const [y, group] = node.inputs as [Node, Node];
  const { sent, tokens, tokenBound, tokenSize } = lowering.values.groups.get(
    group,
  )!;
  const [lists, sums] = [sent.tokens?.lists, tokens?.sums];
  invariant(lists && sums, "a routing lists the rows that are added up");
  const [expert, slot, ...rest] = node.axes;
  const width = fixedProduct(lowering, node, rest);
  const dtype = storedDType(node.dtype);
  const buffer = addScratch(lowering, "sums", dtype, [
    { axis: `${expert} ${slot}`, size: tokenBound, dynamic: true },
    ...bufferAxes(lowering, rest),
  ]);
  const kernel = localCombine({
    ...{ name: `local_combine_${width}`, width, most: lists.most },
    weighted: node.params.weighted,
    round: (sum) => finish(node as Node, sum),
  });
  addLaunch(lowering, node, kernel, {
    bindings: {
      ...{ tokenCount: sums.count, rows: sums.rows },
      ...{ y: lowering.values.storages.get(y)!.buffer, sums: buffer },
    },
    workgroups: elementwiseGrid({ mul: [tokenSize, width] }),
    part: partOf(sent, "sum", "combine"),
  });
  lowering.values.storages.set(node, { buffer, dtype, axes: rest });
}
