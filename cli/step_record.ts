/** The record of a training step: one line of JSON. */

import type { PolicyMetrics, StepMetrics } from "../engine/mod.ts";

/** One line. */
export interface StepRecord {
  readonly step: number;
  readonly loss: number;
  readonly ceLoss: number;
  readonly auxLoss: number | null;
  readonly validationLoss: number | null;
  readonly learningRate: number;
  readonly gradientNorm: number;
  readonly tokens: number;
  readonly tokensPerSecond: number;
  /** For each layer with experts, the fraction of choices per expert, with four digits. */
  readonly expertLoad: readonly (readonly number[])[];
  readonly sentBytes: number;
  /** Memory on the fullest rank of the process. */
  readonly memoryBytes: number;
  readonly saved: boolean;
  /** Other parts of the loss, such as `kl`. */
  readonly parts?: StepMetrics["parts"];
  /** With policy gradients. */
  readonly policy?: PolicyMetrics;
}

/** Creates the record of a step. */
export function recordOf(metrics: StepMetrics): StepRecord {
  return {
    step: metrics.step,
    loss: metrics.loss,
    ceLoss: metrics.crossEntropy,
    auxLoss: metrics.auxiliary ?? null,
    validationLoss: metrics.validation ?? null,
    learningRate: metrics.rate,
    gradientNorm: metrics.gradientNorm,
    tokens: metrics.tokens,
    tokensPerSecond: metrics.tokensPerSecond,
    expertLoad: metrics.experts.map((layer) => layer.map(rounded)),
    sentBytes: metrics.sentBytes,
    memoryBytes: metrics.memoryBytes,
    saved: metrics.saved,
    ...Object.keys(metrics.parts).length > 0 ? { parts: metrics.parts } : {},
    ...metrics.policy ? { policy: metrics.policy } : {},
  };
}

/** Fractions are ratios of counts. More digits would carry no information and take most of the file. */
function rounded(share: number): number {
  return Number(share.toFixed(4));
}
