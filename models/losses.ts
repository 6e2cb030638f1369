/** What decoders are trained for: the next token, and experts that share the work. */

import {
  add,
  balancingLoss,
  crossEntropy,
  mul,
  type Routing,
  type Tensor,
} from "../compiler/mod.ts";
import type { DecoderOptions } from "./config.ts";
import type { DecoderScope } from "./decoder.ts";

/** What a router did. */
export interface Routed {
  readonly logits: Tensor<"token expert", "f32">;
  readonly routing: Routing<"token", "expert", "slot", "choice">;
}

/**
 * `loss`, and what it is made of: `ce_loss`, and `aux_loss` where there are routers. Balanced together, layers can make up
 * for each other, so that an expert of one of them gets nothing; balanced by layer, the loss is the mean over layers.
 */
export function decoderLosses(
  m: DecoderScope,
  logits: Tensor<"token vocab", "f32">,
  routed: readonly Routed[],
  { auxiliary, balance = "together" }: NonNullable<DecoderOptions["training"]>,
): { [name: string]: Tensor<"", "f32"> } {
  const labels = m.input("labels", "token", { dtype: "i32" });
  const ce = crossEntropy(logits, labels, { over: "vocab" });
  if (routed.length === 0) return { loss: ce, ce_loss: ce };
  const groups = balance === "layer" ? routed.map((one) => [one]) : [routed];
  const sum = groups.map((some) =>
    balancingLoss(
      some.map(({ logits }) => logits),
      some.map(({ routing }) => routing),
      { over: "expert" },
    )
  ).reduce((sum, one) => add(sum, one));
  const aux = groups.length === 1 ? sum : mul(sum, 1 / groups.length);
  return { loss: add(ce, mul(aux, auxiliary)), ce_loss: ce, aux_loss: aux };
}
