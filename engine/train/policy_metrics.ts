/** Metrics of policy gradients. */

import { DataError } from "../../spec/errors.ts";
import { LOGPROBS, POLICY_INPUTS } from "../../models/policy.ts";
import type { Tensors } from "../run.ts";
import { deviationOf, meanOf, type Rollout } from "./rollouts.ts";

/** Metrics of a step with policy gradients. */
export interface PolicyMetrics {
  /** Mean and standard deviation of the rewards of all samples. */
  readonly reward: number;
  readonly rewardDeviation: number;
  /** Mean entropy of the sampled distributions, in nats per token. */
  readonly entropy: number;
  /** Mean tokens of a sample, and the fraction of samples that ended at the maximum. */
  readonly length: number;
  readonly unfinished: number;
  /**
   * Largest absolute difference of a sampled token's log-probability in the forward pass of training and in its
   * rollout. Exactly 0 in the first update after rollouts with the numerics of the training.
   */
  readonly logRatio: number;
  /** Bytes of weights that were moved to the rollouts. */
  readonly movedBytes: number;
}

/** Samples of a set of rollouts, and their rewards. */
interface Rewarded {
  readonly rewards: readonly number[];
  readonly rollouts: readonly Rollout[];
  readonly movedBytes: number;
}

/** Measures steps: receives rollouts and the inputs of batches, then the outputs of a step. */
export class PolicyMeter {
  readonly #exact: boolean;
  #figures: Omit<PolicyMetrics, "logRatio"> | undefined;
  #given: { readonly inputs: Tensors; readonly onPolicy: boolean }[] = [];

  /** `exact`: whether rollouts have the numerics of the training, so that log-probabilities must be equal. */
  constructor({ exact }: { readonly exact: boolean }) {
    this.#exact = exact;
  }

  /** Begins with new rollouts. */
  begin({ rewards, rollouts, movedBytes }: Rewarded): void {
    const lengths = rollouts.map(({ tokens }) => tokens.length);
    this.#figures = {
      reward: meanOf(rewards),
      rewardDeviation: deviationOf(rewards),
      entropy: meanOf(rollouts.flatMap(({ entropies }) => entropies)),
      length: meanOf(lengths),
      unfinished: meanOf(
        rollouts.map(({ ending }) => ending === "stop token" ? 0 : 1),
      ),
      movedBytes,
    };
  }

  /** Adds the inputs of a batch. `onPolicy`: whether its tokens were sampled by the current weights. */
  give(inputs: Tensors, { onPolicy }: { readonly onPolicy: boolean }): void {
    this.#given.push({ inputs, onPolicy });
  }

  /** Metrics of a step. Throws DataError if log-probabilities must be equal and are not. */
  observe(outputs: readonly Tensors[]): PolicyMetrics {
    let [logRatio, wrong] = [0, 0];
    for (const [i, { inputs, onPolicy }] of this.#given.entries()) {
      const ratio = largestRatio(inputs, outputs[i]!);
      logRatio = Math.max(logRatio, ratio);
      if (onPolicy) wrong = Math.max(wrong, ratio);
    }
    this.#given = [];
    if (this.#exact && wrong !== 0) {
      throw new DataError(
        `Cannot continue training: log-probabilities of sampled tokens differ by ${wrong} between rollouts and training, and must be equal. Report this with the model and both meshes`,
      );
    }
    return { ...this.#figures!, logRatio };
  }
}

/** The largest |log ratio| of the trained tokens of a batch. */
function largestRatio(inputs: Tensors, outputs: Tensors): number {
  const now = outputs[LOGPROBS]!.data;
  const old = inputs[POLICY_INPUTS.old]!.data;
  const mask = inputs[POLICY_INPUTS.mask]!.data;
  let largest = 0;
  for (let i = 0; i < now.length; i++) {
    if (mask[i] === 0) continue;
    const ratio = Math.abs(now[i]! - old[i]!);
    // NaN counts as unequal.
    if (!(ratio <= largest)) largest = ratio;
  }
  return largest;
}
