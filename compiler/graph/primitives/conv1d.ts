/** Causal depthwise convolution along the tokens of a sequence, over a ring of its last inputs. */

import { ModelError } from "../../../spec/errors.ts";
import { expr } from "../../../spec/kernel/resolve.ts";
import { closed } from "../../../spec/document/plan_schema.ts";
import { operands } from "../evaluate_rows.ts";
import { LINEAR } from "../linear.ts";
import { fail, operand, sameAxes, wantType } from "../operands.ts";
import { ofCache } from "../sharding_rule.ts";
import { fixed, sizeOf } from "../size_of.ts";
import { lengthOf, put, zeros } from "../value.ts";
import type { Definition } from "./definition.ts";
import { axis } from "./fields.ts";

/**
 * ring [sequence, slot, channel] after writing, weight [channel, over], sequence and position [token] -> [token, channel]:
 * the sum over taps j of weight[j] * the input at position - (width - 1) + j, if there is one. The input at position p is
 * in slot p % slots.
 */
export const conv1d: Definition<"conv1d"> = {
  params: closed({ over: axis }),
  fusion: "kernel",
  mixes: "no",

  type({ inputs, params: { over } }) {
    const [ring, weight, ...at] = [0, 1, 2, 3].map((i) => operand(inputs, i));
    const [token] = at[0]!.axes;
    const channel = ring!.axes[2];
    if (
      ring!.axes.length !== 3 || !sameAxes(weight!.axes, [channel!, over]) ||
      at.some(({ axes }) => !sameAxes(axes, [token!]))
    ) {
      fail(
        `Cannot conv1d by '${
          weight!.axes.join(" ")
        }' over '${over}' from state '${
          ring!.axes.join(" ")
        }': expected weights 'channel ${over}', a state 'sequence slot channel', and the sequence and position of each token`,
      );
    }
    for (const x of [ring!, weight!]) wantType("conv1d", x, "f32");
    for (const x of at) wantType("conv1d", x, "i32");
    return { axes: [token!, channel!], dtype: "f32" };
  },

  sizes(node, sizes) {
    const width = fixed(sizes, node, node.params.over, "conv1d over");
    const [, slot] = node.inputs[0]!.axes;
    const slots = fixed(sizes, node, slot!, "conv1d from");
    const [token] = node.axes;
    const { size: tokens } = sizeOf(sizes, node, token!);
    // All tokens of a run may be of one sequence, and each reads what was there before the first of them.
    const enough = tokens + width - 1;
    const positions = sizes.get("context")?.size ?? Infinity;
    if (slots >= Math.min(enough, Math.max(positions, width))) return;
    throw new ModelError(
      `Cannot conv1d over '${node.params.over}' of ${width}: the state has ${slots} slots '${slot}', and a run has up to ${tokens} tokens. Give it ${enough} slots, or as many as the model's axis 'context' has positions`,
      node.span,
    );
  },

  reference(node, context) {
    const [ring, weight, sequence, position] = operands(node, context);
    const [, slots, channels] = ring!.shape as [number, number, number];
    const width = lengthOf(weight!, node.params.over);
    const tokens = sequence!.data.length;
    const result = zeros(node.axes, [tokens, channels], node.dtype);
    for (let i = 0; i < tokens * channels; i++) {
      const [token, channel] = [Math.floor(i / channels), i % channels];
      let sum = 0;
      for (let tap = 0; tap < width; tap++) {
        const at = position!.data[token]! - (width - 1) + tap;
        if (at < 0) continue;
        const row = sequence!.data[token]! * slots + at % slots;
        sum += ring!.data[row * channels + channel]! *
          weight!.data[channel * width + tap]!;
      }
      put(result, i, sum);
    }
    return result;
  },

  // Each tap is a row of the ring for each token, times the tap's weights.
  derivative({ node, dy, b }) {
    const [ring, weight, sequence, position] = node.inputs;
    const { over } = node.params;
    const [sequences, slot] = ring!.axes as [string, string];
    const sizes = b.context.axes;
    const [slots, width] = [sizes[slot]!.size, sizes[over]!.size];
    const entry = `${sequences}_${slot}`;
    const taps = Array.from({ length: width }, (_, tap) => {
      const back = width - 1 - tap;
      const there = b.cast(
        b.map((p) => expr`select(0i, 1i, ${p} >= ${back})`, position!),
        "f32",
      );
      return {
        ids: b.constant(tap, position!),
        entry: b.map(
          (s, p) => expr`${s} * ${slots} + (${p} + ${slots - back}) % ${slots}`,
          sequence!,
          position!,
        ),
        dy: b.map((d, is) => expr`${d} * ${is}`, dy, there),
      };
    });
    const entries = b.make("merge", [ring!], {
      axes: [sequences, slot],
      to: entry,
    });
    return [
      () => {
        const parts = taps.map(({ ids, entry: at, dy }) => {
          const row = b.make("embedding", [weight!, ids], { over });
          const change = b.map((d, w) => expr`${d} * ${w}`, dy, row);
          return b.make("scatterAdd", [change, at], { over: entry }, entries);
        });
        return b.make("split", [parts.reduce((x, y) => b.add(x, y))], {
          axis: entry,
          into: [sequences, slot],
        });
      },
      () =>
        taps.map(({ ids, entry: at, dy }) => {
          const row = b.make("embedding", [entries, at], { over: entry });
          const change = b.map((d, x) => expr`${d} * ${x}`, dy, row);
          return b.make("scatterAdd", [change, ids], { over }, weight!);
        }).reduce((x, y) => b.add(x, y)),
    ];
  },

  sharding: {
    role(node, { operand, axis }, known) {
      const sequence = node.inputs[2]!;
      if (sequence.axes.includes(axis)) {
        return known.sequenceOver(node, sequence, axis);
      }
      if (axis === node.params.over) return "replicated";
      return operand === 0 && axis !== node.axes[1]
        ? ofCache(axis, known)
        : "pass";
    },
    sequence: 2,
    linear: LINEAR.never,
  },
};
