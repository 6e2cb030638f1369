/** The next value of a state that a node updates in place. */

import { convolve } from "./conv1d.ts";
import type { Definition } from "./definition.ts";
import { recur } from "./linear_recurrence.ts";
import { LINEAR } from "../gradients/linear.ts";
import { ModelError } from "../../../spec/errors.ts";
import { operand } from "../operands.ts";

/** y, of `conv1d` or `linearRecurrence` -> the next value of its state */
export const nextState: Definition<"nextState"> = {
  fusion: "view",
  mixes: "no",
  type: ({ inputs }) => operand(operand(inputs, 0).inputs, 0),
  sizes: () => {},

  reference(node, context) {
    const [of] = node.inputs;
    const shown = { ...of!, dtype: node.dtype };
    if (of!.primitive === "linearRecurrence") {
      return recur(shown as never, context).state;
    }
    return convolve(shown as never, context).state;
  },

  derivative({ node }) {
    throw new ModelError(
      "Cannot differentiate the state of a recurrence: gradients are of runs in which every sequence begins",
      node.span,
    );
  },

  sharding: {
    role: () => "local",
    result: (node, _, known) =>
      Object.fromEntries(
        node.axes.map((axis) => [axis, known.placedOver(axis)]),
      ),
    linear: LINEAR.never,
  },
};
