/** Policy gradients: losses of sampled tokens, in the language. */

import {
  clamp,
  exp,
  logProbabilities,
  map,
  minimum,
  mul,
  sub,
  sum,
  type Tensor,
} from "../compiler/mod.ts";
import type { Objective, ObjectiveScope } from "./config.ts";

/** A value per token. Values of tokens that are not trained have no meaning. */
export type TokenValues = Tensor<"token", "f32">;

/** Sampled tokens in a policy loss. */
export interface PolicyTokens {
  /** Log-probabilities under the trained model. Only these have gradients. */
  readonly logprobs: TokenValues;
  /** Log-probabilities under the model that sampled the tokens. */
  readonly old: TokenValues;
  readonly advantages: TokenValues;
  /** 1 for trained tokens, 0 for others. */
  readonly mask: TokenValues;
  /** Log-probabilities under the initial model. Only if the training has one. */
  readonly reference?: TokenValues;
}

/**
 * A policy loss in the language: the scalar `loss`, and other scalars as metrics. Each is a mean over the trained
 * tokens of a micro-batch; a step weighs micro-batches by their number of trained tokens.
 */
export type PolicyLoss = (
  tokens: PolicyTokens,
  m: ObjectiveScope,
) => { readonly loss: Tensor<"", "f32">; readonly [metric: string]: Tensor };

/** Options of `grpo`. */
export interface GrpoOptions {
  /** Distance from 1 at which the probability ratio is clipped. Default: 0.2. */
  readonly clip?: number;
  /** The same for ratios above 1. Default: `clip`. */
  readonly clipHigh?: number | undefined;
  /** Weight of the KL divergence from the initial model. Default: 0, no initial model is needed. */
  readonly kl?: number | undefined;
}

/**
 * The loss of GRPO (Shao et al. 2024, equation 3), with a mean over all tokens as in DAPO (Yu et al. 2025):
 * `-min(ratio · A, clamp(ratio) · A) + kl · (exp(d) - d - 1)`, where `ratio = exp(logprobs - old)` and
 * `d = reference - logprobs`.
 *
 * @example
 * ```ts
 * const loss = grpo({ clip: 0.2, kl: 0.04 });
 * ```
 */
export function grpo(
  { clip = 0.2, clipHigh = clip, kl = 0 }: GrpoOptions = {},
): PolicyLoss {
  return (
    { logprobs, old, advantages, mask, reference },
  ): ReturnType<PolicyLoss> => {
    const ratio = exp(sub(logprobs, old));
    const clipped = clamp(ratio, 1 - clip, 1 + clipHigh);
    const gain = minimum(mul(ratio, advantages), mul(clipped, advantages));
    const policy = meanOf(mul(gain, -1), mask);
    if (!reference) return { loss: policy };
    const divergence = meanOf(
      map(
        (now, before) => Math.exp(before - now) - (before - now) - 1,
        logprobs,
        reference,
      ),
      mask,
    );
    return {
      loss: map((a, b) => a + b, policy, mul(divergence, kl)),
      kl: divergence,
    };
  };
}

/** Returns the mean over the trained tokens; 0 if there are none. */
export function meanOf(
  values: TokenValues,
  mask: TokenValues,
): Tensor<"", "f32"> {
  return map(
    (total, count) => total / Math.max(count, 1),
    sum(mul(values, mask), "token"),
    sum(mask, "token"),
  );
}

/** The input of an objective with a policy loss, by its field of `PolicyTokens`. */
export const POLICY_INPUTS = {
  old: "old_logprobs",
  advantages: "advantages",
  mask: "weights",
  reference: "reference_logprobs",
} as const;

/** The output with the log-probability of each token's label. */
export const LOGPROBS = "logprobs";

/** Returns the objective with a policy loss. Its outputs include the log-probabilities of all labels. */
export function policyObjective(
  loss: PolicyLoss,
  { reference }: { readonly reference: boolean },
): Objective {
  return (m, { logits, labels }) => {
    const logprobs = logProbabilities(logits, labels, { over: "vocab" });
    const input = (name: keyof typeof POLICY_INPUTS) =>
      m.input(POLICY_INPUTS[name], "token");
    const result = loss({
      logprobs,
      old: input("old"),
      advantages: input("advantages"),
      mask: input("mask"),
      ...reference ? { reference: input("reference") } : {},
    }, m);
    return { ...result, [LOGPROBS]: logprobs };
  };
}

/** The objective of a model that only scores tokens. Its loss has no use. */
export function scoringObjective(
  ...[, { logits, labels }]: Parameters<Objective>
): ReturnType<Objective> {
  const logprobs = logProbabilities(logits, labels, { over: "vocab" });
  return { loss: sum(logprobs, "token"), [LOGPROBS]: logprobs };
}
