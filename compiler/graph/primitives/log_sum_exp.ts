/** Log-sum-exp along an axis. */

import { expr } from "../../../spec/kernel/text/resolve.ts";
import { alongRows, operands, shapeFrom } from "../evaluate/rows.ts";
import { logSumExpRow } from "../evaluate/routing.ts";
import { without } from "../messages.ts";
import { alongAxis } from "../operands.ts";
import { replicatedOver } from "../sharding_rule.ts";
import { put, zeros } from "../evaluate/value.ts";
import type { Definition } from "./definition.ts";

/** log(sum of exp(x)) */
export const logSumExp: Definition<"logSumExp"> = {
  fusion: "kernel",
  sharding: replicatedOver(),
  mixes: (node) => [node.params.over],
  sizes() {},

  type({ inputs, params: { over } }) {
    const x = alongAxis("logSumExp", inputs, over);
    return { axes: without(x.axes, [over]), dtype: x.dtype };
  },

  reference(node, context) {
    const [x] = operands(node, context);
    const result = zeros(node.axes, shapeFrom(node, [x!]), node.dtype);
    alongRows(x!, node.params.over, (row, index) => {
      put(result, index, logSumExpRow(row));
    });
    return result;
  },

  derivative: ({ node, dy, b }) => [() =>
    b.map(
      (x, y, d) => expr`exp(${x} - ${y}) * ${d}`,
      node.inputs[0]!,
      node,
      dy,
    )],
};
