/** What decoders are trained for: the next token, and experts that share the work. */

import {
  add,
  crossEntropy,
  dot,
  mean,
  mul,
  type Routing,
  softmax,
  type Tensor,
} from "../compiler/mod.ts";
import type { DecoderScope } from "./decoder.ts";

/** What a router did. */
export interface Routed {
  readonly logits: Tensor<"token expert", "f32">;
  readonly routing: Routing<"token", "expert", "slot", "choice">;
}

/** A number. */
type Loss = Tensor<"", "f32">;

/** `loss`, and what it is made of: `ce_loss`, and `aux_loss` where there are routers. */
export function decoderLosses(
  m: DecoderScope,
  logits: Tensor<"token vocab", "f32">,
  routed: readonly Routed[],
  { auxiliary, experts }: {
    readonly auxiliary: number;
    readonly experts: number;
  },
): { [name: string]: Loss } {
  const labels = m.input("labels", "token", { dtype: "i32" });
  const ce = crossEntropy(logits, labels, { over: "vocab" });
  if (routed.length === 0) return { loss: ce, ce_loss: ce };
  const aux = mul(balancing(routed), experts);
  return { loss: add(ce, mul(aux, auxiliary)), ce_loss: ce, aux_loss: aux };
}

/**
 * As transformers' `load_balancing_loss_func`: the share of choices that each expert gets, over the tokens of all layers,
 * times its mean probability, summed over experts. Times the number of experts, it is `topK` where the work is shared evenly.
 */
function balancing(routed: readonly Routed[]): Loss {
  const shares = routed.map(({ routing }) => mean(routing.chosen, "token"));
  const chances = routed.map(({ logits }) =>
    mean(softmax(logits, "expert"), "token")
  );
  const sum = (xs: Tensor<"expert", "f32">[]) => xs.reduce((a, b) => add(a, b));
  const product = dot(sum(shares), sum(chances), "expert");
  return mul(product, 1 / routed.length ** 2);
}
