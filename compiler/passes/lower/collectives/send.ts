/** Send: moves a value from the ranks at one coordinate of a mesh axis to those at another. */

import { storedDType } from "../../../../spec/dtype.ts";
import { ModelError } from "../../../../spec/errors.ts";
import type { SendStep } from "../../../../spec/plan/plan.ts";
import type { Node, NodeOf } from "../../../graph/graph.ts";
import { planAxis } from "../../../sharding/lengths.ts";
import { assignmentBuffer } from "../routing/assignment.ts";
import {
  about,
  addScratch,
  amendBuffer,
  fixedProduct,
  type Lowering,
  ranksOf,
} from "../context.ts";
import { rowMajorBuffer } from "../elementwise.ts";
import { countedAxis } from "./gather.ts";
import { markUnreduced } from "../storage.ts";

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
  const { bytes } = lowering.draft.buffers.get(from)!;
  const to = addReceived(lowering, "sent", from);
  markUnreduced(lowering, node, to);
  if (rows === undefined && typeof bytes !== "number") {
    throw new ModelError(
      `Cannot send '${
        x.axes.join(" ")
      }' to another stage: ranks have different numbers of its elements. Place equally many on each of them`,
      node.span,
    );
  }
  addSend(lowering, node, {
    ranks: ranksOf(placed, stages),
    over,
    stages,
    from,
    to,
    rows,
    bytes: rows === undefined
      ? bytes as number
      : 4 * fixedProduct(lowering, node, rest),
  });
  lowering.values.storages.set(node, { buffer: to, dtype, axes });
}

/** A scratch buffer for a buffer of another rank. Returns its name. */
export function addReceived(
  lowering: Lowering,
  base: string,
  from: string,
): string {
  const { dtype, axes } = lowering.draft.buffers.get(from)!;
  const to = addScratch(lowering, base, dtype, axes);
  return amendBuffer(lowering, to, { sentFrom: from });
}

/** Adds a send of a buffer, or only of its rows along the dynamic axis `rows`, for a node. */
export function addSend(
  lowering: Lowering,
  node: Node,
  { rows, ...step }:
    & Pick<SendStep, "ranks" | "over" | "stages" | "from" | "to" | "bytes">
    & { readonly rows: string | undefined },
): void {
  lowering.draft.steps.push({
    op: "send",
    ...step,
    ...rows === undefined ? {} : {
      rows: {
        axis: planAxis(lowering.placed, rows),
        counts: assignmentBuffer(lowering, rows, { holds: "counts", over: [] }),
      },
    },
    ...about(lowering, node),
  });
}
