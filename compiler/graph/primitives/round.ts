/** Rounding of rows to the format of an exchange. Only the compiler inserts it. */

import { roundToWire } from "../../../spec/wire.ts";
import { mapRows, operands } from "../evaluate/rows.ts";
import { alongAxis } from "../operands.ts";
import { replicatedOver } from "../sharding_rule.ts";
import type { Definition } from "./definition.ts";

/** x, rounded in blocks along `over` */
export const round: Definition<"round"> = {
  fusion: "kernel",
  sharding: replicatedOver(),
  mixes: (node) => [node.params.over],
  sizes() {},
  type: ({ inputs, params: { over } }) => alongAxis("round", inputs, over),

  reference: (node, context) =>
    mapRows(
      node,
      operands(node, context)[0]!,
      node.params.over,
      (row) => roundToWire(node.params.format, row),
    ),

  derivative: ({ dy }) => [() => dy],
};
