/** How a model is trained: what a checkpoint must remember so that a run that was stopped goes on as if it had not been. */

import type { AdamW, Optimizer, Sgd } from "../../compiler/mod.ts";
import { DataError } from "../../spec/errors.ts";

/**
 * Adam with decoupled weight decay.
 *
 * @example
 * ```ts
 * const optimizer = adamW({ betas: [0.9, 0.95], weightDecay: 0.1 });
 * console.assert(optimizer.kind === "adamW");
 * ```
 */
export function adamW(options: Omit<AdamW, "kind"> = {}): AdamW {
  return { kind: "adamW", ...options };
}

/**
 * Gradient descent with momentum.
 *
 * @example
 * ```ts
 * const optimizer = sgd({ momentum: 0.9 });
 * console.assert(optimizer.kind === "sgd");
 * ```
 */
export function sgd(options: Omit<Sgd, "kind"> = {}): Sgd {
  return { kind: "sgd", ...options };
}

/** The learning rate over the steps: up in a line, then down along a cosine. */
export interface Schedule {
  /** The highest rate. */
  readonly rate: number;
  /** Steps until it is reached; default 0. */
  readonly warmup?: number;
  /** The step from which on the rate is lowest; absent: it stays the highest. */
  readonly decay?: number;
  /** The lowest rate after that, as a share of the highest; default 0.1. */
  readonly floor?: number;
}

/** What must stay as it is over all steps of a training. */
export interface TrainSettings {
  readonly optimizer: Optimizer;
  readonly schedule: Schedule;
  /** Gradients are scaled down together where their norm is larger; default: not. */
  readonly clipNorm?: number;
  /** Sequences of a step. */
  readonly batch: number;
  /** Tokens of a sequence. */
  readonly length: number;
  /** Weight of the loss that balances experts; default: `router_aux_loss_coef` of config.json, else 0.01. */
  readonly auxiliary?: number;
  /** Same seed, same initial weights and order of sequences; default 0. */
  readonly seed?: number;
}

/**
 * The learning rate of a step, counted from 1.
 *
 * @example
 * ```ts
 * const schedule = { rate: 1, warmup: 4, decay: 10, floor: 0 };
 * console.assert(rateAt(schedule, 2) === 0.5);
 * console.assert(rateAt(schedule, 10) === 0);
 * ```
 */
export function rateAt(
  { rate, warmup = 0, decay, floor = 0.1 }: Schedule,
  step: number,
): number {
  if (step <= warmup) return rate * step / warmup;
  if (decay === undefined) return rate;
  const past = Math.min(1, (step - warmup) / Math.max(1, decay - warmup));
  const share = (1 + Math.cos(Math.PI * past)) / 2;
  return rate * (floor + (1 - floor) * share);
}

/** Refuse settings that mean nothing. */
export function checkSettings(
  { schedule, clipNorm, batch, length, auxiliary, seed }: TrainSettings,
): void {
  const { rate, warmup, decay, floor } = schedule;
  const whole = { batch, length, warmup, decay, seed };
  const numbers = { rate, floor, clipNorm, auxiliary };
  for (const [name, value] of Object.entries({ ...whole, ...numbers })) {
    if (value === undefined) continue;
    const least = name === "batch" || name === "length" ? 1 : 0;
    if (value >= least && (!(name in whole) || Number.isSafeInteger(value))) {
      continue;
    }
    throw new DataError(
      `Cannot train with ${name} ${value}: expected a ${
        name in whole ? "whole number" : "number"
      } of at least ${least}`,
    );
  }
}
