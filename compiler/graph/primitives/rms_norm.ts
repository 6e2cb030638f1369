/** RMS norms along an axis. */

import { expr } from "../../../spec/kernel/text/resolve.ts";
import { mapRows, operands, total } from "../evaluate/rows.ts";
import { messages as say } from "../messages.ts";
import {
  fail,
  operand,
  sameAxes,
  wantAxis,
  wantFloat,
  wantType,
} from "../operands.ts";
import { replicatedOver } from "../sharding_rule.ts";
import type { Definition } from "./definition.ts";

/** gain * x / sqrt(mean(x^2) + epsilon) */
export const rmsNorm: Definition<"rmsNorm"> = {
  fusion: "kernel",
  sharding: replicatedOver(),
  mixes: (node) => [node.params.over],
  sizes() {},

  type({ inputs, params: { over } }) {
    const [x, gain] = [operand(inputs, 0), operand(inputs, 1)];
    wantAxis("rmsNorm", x, over);
    if (!sameAxes(gain.axes, [over])) {
      fail(say.gain(x.axes, over, { op: "rmsNorm", gain: gain.axes }));
    }
    wantType("rmsNorm", gain, x.dtype);
    wantFloat("rmsNorm", x);
    return x;
  },

  reference(node, context) {
    const [x, gain] = operands(node, context);
    const { over, epsilon } = node.params;
    return mapRows(node, x!, over, (row) => {
      const square = total(row.map((v) => v * v)) / row.length;
      const scale = 1 / Math.sqrt(square + epsilon);
      return row.map((v, i) => gain!.data[i]! * (v * scale));
    });
  },

  derivative({ node, dy, b }) {
    const [x, gain] = node.inputs;
    const { over, epsilon } = node.params;
    const square = b.map((v) => expr`${v} * ${v}`, x!);
    const scale = b.map(
      (mean) => expr`1.0 / sqrt(${mean} + ${epsilon})`,
      b.make("reduce", [square], { kind: "mean", over }),
    );
    return [
      () => {
        const gained = b.map((d, g) => expr`${d} * ${g}`, dy, gain!);
        const product = b.map((d, v) => expr`${d} * ${v}`, gained, x!);
        const mean = b.make("reduce", [product], { kind: "mean", over });
        return b.map(
          (v, d, r, m) => expr`${r} * (${d} - ${v} * (${r} * ${r}) * ${m})`,
          x!,
          gained,
          scale,
          mean,
        );
      },
      () =>
        b.sumTo(
          b.map((d, v, r) => expr`${d} * (${v} * ${r})`, dy, x!, scale),
          gain!.axes,
        ),
    ];
  },
};
