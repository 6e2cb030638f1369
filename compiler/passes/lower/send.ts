/** Send: moves a value from the ranks of one stage to those of another. */

import { storedDType } from "../../../spec/dtype.ts";
import { ModelError } from "../../../spec/errors.ts";
import type { Node, NodeOf } from "../../graph/graph.ts";
import { planAxis } from "../../sharding/lengths.ts";
import { assignmentBuffer } from "./assignment.ts";
import {
  about,
  addScratch,
  amendBuffer,
  fixedProduct,
  type Lowering,
  ranksOf,
} from "./context.ts";
import { rowMajorBuffer } from "./elementwise.ts";
import { countedAxis } from "./gather.ts";
import { markUnreduced } from "./storage.ts";

/** Sends a value, only its existing rows if their number is dynamic. */
export function lowerSend(lowering: Lowering, node: NodeOf<"send">): void {
  const [x] = node.inputs as [Node];
  const { over, stages } = node.params;
  const { placed } = lowering;
  const rows = countedAxis(lowering, x);
  const rest = x.axes.filter((axis) => axis !== rows);
  const axes = rows === undefined ? rest : [rows, ...rest];
  const from = rowMajorBuffer(lowering, x, axes);
  const dtype = storedDType(x.dtype);
  const { bytes, axes: stored } = lowering.draft.buffers.get(from)!;
  const to = addScratch(lowering, "sent", dtype, stored);
  markUnreduced(lowering, node, to);
  amendBuffer(lowering, to, { sentFrom: from });
  if (rows === undefined && typeof bytes !== "number") {
    throw new ModelError(
      `Cannot send '${
        x.axes.join(" ")
      }' to another stage: ranks have different numbers of its elements. Place equally many on each of them`,
      node.span,
    );
  }
  lowering.draft.steps.push({
    op: "send",
    ranks: ranksOf(placed, stages),
    over,
    stages,
    from,
    to,
    ...rows === undefined ? { bytes: bytes as number } : {
      bytes: 4 * fixedProduct(lowering, node, rest),
      rows: {
        axis: planAxis(placed, rows),
        counts: assignmentBuffer(lowering, rows, { holds: "counts", over: [] }),
      },
    },
    ...about(lowering, node),
  });
  lowering.values.storages.set(node, { buffer: to, dtype, axes });
}
