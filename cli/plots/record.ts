/** What is written of each step of a training: a line of JSON. */

import type { StepMetrics } from "../../engine/mod.ts";

/** One line. */
export interface StepRecord {
  readonly step: number;
  readonly loss: number;
  readonly ce_loss: number;
  readonly aux_loss: number | null;
  readonly validation_loss: number | null;
  readonly learning_rate: number;
  readonly gradient_norm: number;
  readonly tokens: number;
  readonly tokens_per_second: number;
  /** Of each layer with experts, the share of choices that each expert got, to four digits. */
  readonly expert_load: readonly (readonly number[])[];
  readonly sent_bytes: number;
  readonly saved: boolean;
}

/** The record of a step. */
export function recordOf(metrics: StepMetrics): StepRecord {
  return {
    step: metrics.step,
    loss: metrics.loss,
    ce_loss: metrics.crossEntropy,
    aux_loss: metrics.auxiliary ?? null,
    validation_loss: metrics.validation ?? null,
    learning_rate: metrics.rate,
    gradient_norm: metrics.gradientNorm,
    tokens: metrics.tokens,
    tokens_per_second: metrics.tokensPerSecond,
    expert_load: metrics.experts.map((layer) => layer.map(rounded)),
    sent_bytes: metrics.sentBytes,
    saved: metrics.saved,
  };
}

/** Shares are counts of choices: more digits say nothing, and take most of the file. */
function rounded(share: number): number {
  return Number(share.toFixed(4));
}
