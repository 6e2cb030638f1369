/** Training losses of decoders: next tokens, and the balance of experts. */

import {
  add,
  balancingLoss,
  crossEntropy,
  mul,
  type Routing,
  type Tensor,
} from "../compiler/mod.ts";
import type { DecoderOptions, Objective } from "./config.ts";
import type { DecoderScope } from "./decoder.ts";

/** The result of a router. */
export interface Routed {
  readonly logits: Tensor<"token expert", "f32">;
  readonly routing: Routing<"token", "expert", "slot", "choice">;
}

/**
 * Returns `loss` and its parts: outputs of the objective, `ce_loss` by default, and `aux_loss` if there are routers. If
 * layers are balanced together, one can compensate for another, and an expert of one layer may receive no tokens. If
 * they are balanced by layer, the loss is the mean over layers.
 */
export function decoderLosses(
  m: DecoderScope,
  logits: Tensor<"token vocab", "f32">,
  routed: readonly Routed[],
  { auxiliary, balance = "together", objective = nextTokens }: NonNullable<
    DecoderOptions["training"]
  >,
): { [name: string]: Tensor } {
  const labels = m.input("labels", "token", { dtype: "i32" });
  const { loss, ...outputs } = objective(m, { logits, labels });
  if (routed.length === 0) return { loss, ...outputs };
  const groups = balance === "layer" ? routed.map((one) => [one]) : [routed];
  // Zero-computation experts are balanced as others: the axis is that of the router's outputs.
  const [first] = routed as [Routed];
  const over = first.logits.axes.split(" ").at(-1) as "expert";
  const sum = groups.map((some) =>
    balancingLoss(
      some.map(({ logits }) => logits),
      some.map(({ routing }) => routing),
      { over },
    )
  ).reduce((sum, one) => add(sum, one));
  const aux = groups.length === 1 ? sum : mul(sum, 1 / groups.length);
  return { loss: add(loss, mul(aux, auxiliary)), ...outputs, aux_loss: aux };
}

/** The mean cross-entropy of the next tokens. */
function nextTokens(
  ...[, { logits, labels }]: Parameters<Objective>
): ReturnType<Objective> {
  const loss = crossEntropy(logits, labels, { over: "vocab" });
  return { loss, ce_loss: loss };
}

/** The mean cross-entropy of the next tokens, weighted by the input `weights`. */
export function weightedTokens(
  ...[m, { logits, labels }]: Parameters<Objective>
): ReturnType<Objective> {
  const weights = m.input("weights", "token");
  const loss = crossEntropy(logits, labels, { over: "vocab", weights });
  return { loss, ce_loss: loss };
}
