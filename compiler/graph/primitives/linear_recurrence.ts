/** Linear recurrence over the tokens of a sequence with a matrix state: the delta rule and related rules. */

import { ModelError } from "../../../spec/errors.ts";
import { EXACT } from "../../../spec/numerics.ts";
import { recurrenceDerivative } from "../gradients/recurrence.ts";
import { operands } from "../evaluate/rows.ts";
import type { Context } from "../evaluate/rules.ts";
import type { Node } from "../graph.ts";
import { LINEAR } from "../gradients/linear.ts";
import { fail, operand, sameAxes, wantType } from "../operands.ts";
import { ofCache } from "../sharding_rule.ts";
import { fixed } from "../size_of.ts";
import {
  put,
  rounding,
  type Shown,
  type Value,
  zeros,
} from "../evaluate/value.ts";
import type { Definition } from "./definition.ts";

/**
 * state [sequence, head, key, value], query and key [token, kvHead, key], value [token, head, value], decay [token,
 * head] or [token, head, key], rate [token, head], sequence and position [token] -> [token, head, value]. For each
 * token of a sequence, in order: S = decay * S; d = rate * (value - Sᵀ key), or rate * value; S = S + key dᵀ; Sᵀ
 * query.
 */
export const linearRecurrence: Definition<"linearRecurrence"> = {
  fusion: "kernel",
  mixes: "no",

  type({ inputs, params }) {
    const { token, head, kvHead, dim, valueDim } = params;
    const [state, query, key, value, decay, rate, ...at] = inputs.map((_, i) =>
      operand(inputs, i)
    );
    const vector = [token, kvHead, dim];
    const expected: readonly (readonly [string, Node, readonly string[]])[] = [
      ["query", query!, vector],
      ["key", key!, vector],
      ["value", value!, [token, head, valueDim]],
      ["rate", rate!, [token, head]],
      ["sequence", at[0]!, [token]],
      ["position", at[1]!, [token]],
      ["state", state!, [state!.axes[0]!, head, dim, valueDim]],
      [
        "decay",
        decay!,
        decay!.axes.length === 3 ? [token, head, dim] : [token, head],
      ],
    ];
    for (const [name, { axes }, wanted] of expected) {
      if (sameAxes(axes, wanted)) continue;
      fail(
        `Cannot compute a recurrence: its ${name} is '${
          axes.join(" ")
        }', expected '${wanted.join(" ")}'`,
      );
    }
    for (const x of [state, query, key, value, decay, rate]) {
      wantType("compute a recurrence of", x!, "f32");
    }
    for (const x of at) wantType("compute a recurrence at", x, "i32");
    return { axes: [token, head, valueDim], dtype: "f32" };
  },

  sizes(node, sizes) {
    const { head, kvHead, dim, valueDim } = node.params;
    const what = "compute a recurrence over";
    const [heads, keyHeads] = [head, kvHead, dim, valueDim].map((axis) =>
      fixed(sizes, node, axis, what)
    ) as [number, number];
    if (heads % keyHeads === 0) return;
    throw new ModelError(
      `Cannot compute a recurrence: '${head}' has ${heads}, which is no multiple of the ${keyHeads} of '${kvHead}'`,
      node.span,
    );
  },

  reference: (node, context) => recur(node, context).y,

  derivative: recurrenceDerivative,

  sharding: {
    role(node, { operand, axis }, known) {
      const { token, head, kvHead, dim } = node.params;
      if (axis === token) {
        return known.sequenceOver(node, node.inputs[6]!, axis);
      }
      if (axis === head || axis === kvHead) return known.placedOver(axis);
      if (axis === dim) return "replicated";
      return operand === 0 && axis === node.inputs[0]!.axes[0]
        ? ofCache(axis, known)
        : "pass";
    },
    sequence: 6,
    linear: LINEAR.never,
  },
};

/** The result and the next value of the state, in the order of the numeric contract. */
export function recur(
  node: Shown<"linearRecurrence">,
  context: Context,
): { readonly y: Value; readonly state: Value } {
  const [state, query, key, value, decay, rate, sequence, position] = operands(
    node,
    context,
  ) as [Value, Value, Value, Value, Value, Value, Value, Value];
  const round = rounding(state);
  const [, heads, dim, width] = state.shape as [number, number, number, number];
  const [tokens, keyHeads] = key.shape as [number, number];
  const perKey = decay.shape.length === 3;
  const y = zeros(node.axes, value.shape, node.dtype);
  const next = { ...state, data: state.data.slice() };
  const delta = node.params.rule === "delta";
  /** The sum of the products of `rows` and a column of the state. */
  const read = (rows: Value, first: number, column: number) => {
    let total = 0;
    for (let start = 0; start < dim; start += EXACT.block) {
      let block = 0;
      for (let i = start; i < Math.min(start + EXACT.block, dim); i++) {
        const s = next.data[column + i * width]!;
        block = round(round(s * rows.data[first + i]!) + block);
      }
      total = round(total + block);
    }
    return total;
  };
  for (let t = 0; t < tokens; t++) {
    for (let h = 0; h < heads; h++) {
      const matrix = (sequence.data[t]! * heads + h) * dim * width;
      const row = (t * keyHeads + Math.floor(h / (heads / keyHeads))) * dim;
      const at = t * heads + h;
      for (let c = 0; c < width; c++) {
        const column = matrix + c;
        for (let i = 0; i < dim; i++) {
          const before = position.data[t] === 0
            ? 0
            : next.data[column + i * width]!;
          const factor = decay.data[perKey ? at * dim + i : at]!;
          next.data[column + i * width] = round(factor * before);
        }
        const v = value.data[at * width + c]!;
        const rest = delta ? round(v - read(key, row, column)) : v;
        const change = round(rate.data[at]! * rest);
        for (let i = 0; i < dim; i++) {
          const product = round(key.data[row + i]! * change);
          const offset = column + i * width;
          next.data[offset] = round(product + next.data[offset]!);
        }
        put(y, at * width + c, read(query, row, column));
      }
    }
  }
  return { y, state: next };
}
