/** Causal depthwise convolution along the tokens of a sequence. The state is the last inputs of each sequence. */

import { ModelError } from "../../../spec/errors.ts";
import { expr } from "../../../spec/kernel/text/resolve.ts";
import { operands } from "../evaluate/rows.ts";
import type { Context } from "../evaluate/rules.ts";
import type { Node } from "../graph.ts";
import { LINEAR } from "../gradients/linear.ts";
import { fail, operand, sameAxes, wantType } from "../operands.ts";
import { ofCache } from "../sharding_rule.ts";
import { fixed } from "../size_of.ts";
import {
  lengthOf,
  put,
  rounding,
  type Shown,
  type Value,
  zeros,
} from "../evaluate/value.ts";
import type { Definition } from "./definition.ts";

/**
 * state [sequence, slot, channel], x [token, channel], weight [channel, over], sequence and position [token] -> [token,
 * channel]: the sum over taps j of weight[j] * the input at position - (width - 1) + j, 0 before position 0. The state
 * contains the last width - 1 inputs, oldest first.
 */
export const conv1d: Definition<"conv1d"> = {
  fusion: "kernel",
  mixes: "no",

  type({ inputs, params: { over } }) {
    const [state, x, weight, ...at] = [0, 1, 2, 3, 4].map((i) =>
      operand(inputs, i)
    );
    const [token, channel] = x!.axes;
    if (
      x!.axes.length !== 2 || state!.axes.length !== 3 ||
      state!.axes[2] !== channel ||
      !sameAxes(weight!.axes, [channel!, over]) ||
      at.some(({ axes }) => !sameAxes(axes, [token!]))
    ) {
      fail(
        `Cannot conv1d '${x!.axes.join(" ")}' by '${
          weight!.axes.join(" ")
        }' over '${over}' from state '${
          state!.axes.join(" ")
        }': expected values 'token channel', weights 'channel ${over}', a state 'sequence slot channel', and the sequence and position of each token`,
      );
    }
    for (const each of [state!, x!, weight!]) wantType("conv1d", each, "f32");
    for (const each of at) wantType("conv1d", each, "i32");
    return { axes: [token!, channel!], dtype: "f32" };
  },

  sizes(node, sizes) {
    const width = fixed(sizes, node, node.params.over, "conv1d over");
    const [, slot] = node.inputs[0]!.axes;
    const slots = fixed(sizes, node, slot!, "conv1d from");
    if (width > 1 && slots === width - 1) return;
    throw new ModelError(
      `Cannot conv1d over '${node.params.over}' of ${width}: the state has ${slots} slots '${slot}'. It must have one less than there are taps`,
      node.span,
    );
  },

  reference: (node, context) => convolve(node, context).y,

  // Each tap multiplies the input of an earlier token.
  derivative({ node, dy, b }) {
    const [, x, weight, sequence, position] = node.inputs as [
      Node,
      Node,
      Node,
      Node,
      Node,
    ];
    const { over } = node.params;
    const width = b.context.axes[over]!.size;
    const shifted = (rows: Node, by: number) =>
      by === 0 ? rows : b.make("shift", [rows, sequence, position], { by });
    const taps = Array.from({ length: width }, (_, tap) => ({
      ids: b.constant(tap, position),
      back: width - 1 - tap,
    }));
    const sum = (parts: readonly Node[]) => parts.reduce((x, y) => b.add(x, y));
    return [
      undefined,
      () =>
        sum(taps.map(({ ids, back }) => {
          const row = b.make("embedding", [weight, ids], { over });
          return b.map(
            (d, w) => expr`${d} * ${w}`,
            shifted(dy, -back),
            row,
          );
        })),
      () =>
        sum(taps.map(({ ids, back }) => {
          const change = b.map(
            (d, v) => expr`${d} * ${v}`,
            dy,
            shifted(x, back),
          );
          return b.make("scatterAdd", [change, ids], { over }, weight);
        })),
    ];
  },

  sharding: {
    role(node, { operand, axis }, known) {
      const sequence = node.inputs[3]!;
      if (sequence.axes.includes(axis)) {
        return known.sequenceOver(node, sequence, axis);
      }
      if (axis === node.params.over) return "replicated";
      return operand === 0 && axis !== node.axes[1]
        ? ofCache(axis, known)
        : "pass";
    },
    sequence: 3,
    linear: LINEAR.never,
  },
};

/** The result and the next value of the state. */
export function convolve(
  node: Shown<"conv1d">,
  context: Context,
): { readonly y: Value; readonly state: Value } {
  const [state, x, weight, sequence, position] = operands(node, context) as [
    Value,
    Value,
    Value,
    Value,
    Value,
  ];
  const round = rounding(state);
  const [, slots, channels] = state.shape as [number, number, number];
  const width = lengthOf(weight, node.params.over);
  const y = zeros(node.axes, x.shape, node.dtype);
  const next = { ...state, data: state.data.slice() };
  for (let i = 0; i < x.data.length; i++) {
    const [token, channel] = [Math.floor(i / channels), i % channels];
    const first = sequence.data[token]! * slots * channels + channel;
    const offsets = Array.from(
      { length: slots },
      (_, slot) => first + slot * channels,
    );
    const seen = offsets.map((offset) =>
      position.data[token] === 0 ? 0 : next.data[offset]!
    );
    seen.push(x.data[i]!);
    const sum = seen.reduce(
      (sum, v, tap) =>
        round(round(weight.data[channel * width + tap]! * v) + sum),
      0,
    );
    put(y, i, sum);
    offsets.forEach((offset, slot) => next.data[offset] = seen[slot + 1]!);
  }
  return { y, state: next };
}
