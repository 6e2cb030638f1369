/** What decoders are trained for: the next token, and experts that share the work. */

import {
  add,
  balancingLoss,
  crossEntropy,
  mul,
  type Routing,
  type Tensor,
} from "../compiler/mod.ts";
import type { DecoderScope } from "./decoder.ts";

/** What a router did. */
export interface Routed {
  readonly logits: Tensor<"token expert", "f32">;
  readonly routing: Routing<"token", "expert", "slot", "choice">;
}

/**
 * `loss`, and what it is made of: `ce_loss`, and `aux_loss` where there are routers, those of all layers taken together
 * as transformers does.
 */
export function decoderLosses(
  m: DecoderScope,
  logits: Tensor<"token vocab", "f32">,
  routed: readonly Routed[],
  { auxiliary }: { readonly auxiliary: number },
): { [name: string]: Tensor<"", "f32"> } {
  const labels = m.input("labels", "token", { dtype: "i32" });
  const ce = crossEntropy(logits, labels, { over: "vocab" });
  if (routed.length === 0) return { loss: ce, ce_loss: ce };
  const aux = balancingLoss(
    routed.map(({ logits }) => logits),
    routed.map(({ routing }) => routing),
    { over: "expert" },
  );
  return { loss: add(ce, mul(aux, auxiliary)), ce_loss: ce, aux_loss: aux };
}
