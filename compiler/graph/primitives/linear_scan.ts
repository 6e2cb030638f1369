/**
 * Forward and backward recurrences for runs in which every sequence starts. The derivative of `linearRecurrence` uses
 * them.
 */

import { EXACT } from "../../../spec/numerics.ts";
import { operands } from "../evaluate/rows.ts";
import { LINEAR } from "../gradients/linear.ts";
import { fail, operand, sameAxes } from "../operands.ts";
import { put, rounding, type Value, zeros } from "../evaluate/value.ts";
import { ModelError } from "../../../spec/errors.ts";
import type { Definition } from "./definition.ts";

/**
 * query and key [token, heads, dim], value [token, heads, valueDim], decay [token, head], [token, head, dim] or [token,
 * head, valueDim], rate [token, head], sequence and position [token] -> [token, head, valueDim]. If an operand has
 * fewer heads, several heads share one. S starts at 0. For each token, S is multiplied by the decay, and then:
 *
 * - "add": S = S + key valueᵀ; the result is Sᵀ query.
 * - "seen": d = rate * (value - Sᵀ key); the result is Sᵀ key before S = S + key dᵀ.
 * - "erase": S = S + query valueᵀ; the result is Sᵀ key before S = S - key (rate * result)ᵀ.
 *
 * `reverse`: from the last token of a sequence to its first, with the decay of the previous token in that order.
 */
export const linearScan: Definition<"linearScan"> = {
  fusion: "kernel",
  mixes: "no",

  type({ inputs, params: { token, head, dim, valueDim } }) {
    const lasts = [dim, dim, valueDim];
    for (const [i, last] of lasts.entries()) {
      const { axes } = operand(inputs, i);
      if (sameAxes(axes, [token, axes[1]!, last])) continue;
      fail(
        `Cannot scan '${axes.join(" ")}': expected '${token} head ${last}'`,
      );
    }
    return { axes: [token, head, valueDim], dtype: "f32" };
  },

  sizes: () => {},

  reference(node, context) {
    const [query, key, value, decay, rate, sequence, position] = operands(
      node,
      context,
    ) as [Value, Value, Value, Value, Value, Value, Value];
    const { rule, reverse } = node.params;
    const [, , each] = node.inputs[3]!.axes;
    const round = rounding(value);
    const [tokens, heads] = rate.shape as [number, number];
    const dim = key.shape[2]!;
    const width = value.shape[2]!;
    const y = zeros(node.axes, [tokens, heads, width], node.dtype);
    const order = Array.from(
      { length: tokens },
      (_, i) => reverse ? tokens - 1 - i : i,
    );
    const rowOf = (x: Value, t: number, h: number) => {
      const [, count, length] = x.shape as [number, number, number];
      return (t * count + Math.floor(h / (heads / count))) * length;
    };
    for (let h = 0; h < heads; h++) {
      for (let c = 0; c < width; c++) {
        const column = new Float64Array(dim);
        const read = (x: Value, t: number) => {
          const first = rowOf(x, t, h);
          let total = 0;
          for (let start = 0; start < dim; start += EXACT.block) {
            let block = 0;
            for (let i = start; i < Math.min(start + EXACT.block, dim); i++) {
              block = round(round(column[i]! * x.data[first + i]!) + block);
            }
            total = round(total + block);
          }
          return total;
        };
        const add = (x: Value, t: number, change: number) => {
          const first = rowOf(x, t, h);
          for (let i = 0; i < dim; i++) {
            column[i] = round(round(x.data[first + i]! * change) + column[i]!);
          }
        };
        order.forEach((t, n) => {
          const before = order[n - 1];
          const late = reverse ? before : t;
          const goesOn = before !== undefined &&
            sequence.data[before] === sequence.data[t] &&
            position.data[late!] !== 0;
          if (!goesOn) column.fill(0);
          const factors = reverse ? before ?? t : t;
          for (let i = 0; i < dim; i++) {
            const at = factors * heads + h;
            const factor = decay.data[
              each === undefined
                ? at
                : each === node.params.dim
                ? at * dim + i
                : at * width + c
            ]!;
            column[i] = round(factor * column[i]!);
          }
          const at = t * heads + h;
          const v = value.data[rowOf(value, t, h) + c]!;
          const r = rate.data[at]!;
          if (rule === "add") {
            add(key, t, v);
            put(y, at * width + c, read(query, t));
          } else if (rule === "seen") {
            const seen = read(key, t);
            put(y, at * width + c, seen);
            add(key, t, round(r * round(v - seen)));
          } else {
            add(query, t, v);
            const seen = read(key, t);
            put(y, at * width + c, seen);
            add(key, t, -round(r * seen));
          }
        });
      }
    }
    return y;
  },

  derivative({ node }) {
    throw new ModelError(
      "Cannot differentiate the derivative of a recurrence",
      node.span,
    );
  },

  sharding: {
    role(node, { axis }, known) {
      const { token, head, dim, valueDim } = node.params;
      if (axis === token) {
        return known.sequenceOver(node, node.inputs[5]!, axis);
      }
      if (axis === dim) return "replicated";
      return axis === valueDim && axis !== head
        ? "replicated"
        : known.placedOver(axis);
    },
    sequence: 5,
    linear: LINEAR.never,
  },
};
