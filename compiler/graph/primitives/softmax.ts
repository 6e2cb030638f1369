/** The softmax along an axis. */

import { expr } from "../../../spec/kernel/text/resolve.ts";
import { mapRows, operands } from "../evaluate/rows.ts";
import { softmaxRow } from "../evaluate/routing.ts";
import { alongAxis } from "../operands.ts";
import { replicatedOver } from "../sharding_rule.ts";
import type { Definition } from "./definition.ts";

/** exp(x - max) / sum of exp(x - max) */
export const softmax: Definition<"softmax"> = {
  fusion: "kernel",
  sharding: replicatedOver(),
  mixes: (node) => [node.params.over],
  sizes() {},

  type: ({ inputs, params: { over } }) => alongAxis("softmax", inputs, over),

  reference: (node, context) =>
    mapRows(node, operands(node, context)[0]!, node.params.over, softmaxRow),

  derivative: ({ node, dy, b }) => [() => {
    const { over } = node.params;
    const product = b.map((y, d) => expr`${y} * ${d}`, node, dy);
    const mean = b.make("reduce", [product], { kind: "sum", over });
    return b.map((y, d, m) => expr`${y} * (${d} - ${m})`, node, dy, mean);
  }],
};
