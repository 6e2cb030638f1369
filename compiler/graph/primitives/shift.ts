/** Shifts rows by a number of tokens within a sequence. The derivative of a convolution uses it. */

import { operands } from "../evaluate/rows.ts";
import { LINEAR } from "../gradients/linear.ts";
import { operand } from "../operands.ts";
import { zeros } from "../evaluate/value.ts";
import type { Definition } from "./definition.ts";

/**
 * x [token, channel], sequence and position [token] -> the row of the token `by` tokens earlier in the run, or 0 if
 * that token is of another sequence or not `by` positions earlier. A negative `by` shifts forward.
 */
export const shift: Definition<"shift"> = {
  fusion: "kernel",
  mixes: "no",
  type: ({ inputs }) => operand(inputs, 0),
  sizes: () => {},

  reference(node, context) {
    const [x, sequence, position] = operands(node, context);
    const { by } = node.params;
    const [tokens, width] = x!.shape as [number, number];
    const result = zeros(node.axes, x!.shape, node.dtype);
    for (let t = 0; t < tokens; t++) {
      const from = t - by;
      if (
        sequence!.data[from] !== sequence!.data[t] ||
        position!.data[from] !== position!.data[t]! - by
      ) continue;
      const row = x!.data.subarray(from * width, (from + 1) * width);
      result.data.set(row, t * width);
    }
    return result;
  },

  derivative: ({ node, dy, b }) => [
    () =>
      b.make("shift", [dy, ...node.inputs.slice(1)], { by: -node.params.by }),
  ],

  sharding: {
    role(node, { axis }, known) {
      const sequence = node.inputs[1]!;
      return sequence.axes.includes(axis)
        ? known.sequenceOver(node, sequence, axis)
        : "pass";
    },
    sequence: 1,
    linear: LINEAR.first,
  },
};
