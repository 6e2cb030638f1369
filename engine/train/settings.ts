/** How a model is trained: what a checkpoint must hold so that a run that was stopped goes on as if it had not been. */

import type { Optimizer, Schedule, TrainedDType } from "../../compiler/mod.ts";
import type { Balance } from "../../models/mod.ts";
import { DataError } from "../../spec/errors.ts";
import { MAX_MICRO_BATCHES } from "../../spec/limits.ts";

/** What must stay as it is over all steps of a training, whatever it is on. */
export interface StepSettings {
  readonly optimizer: Optimizer;
  readonly schedule: Schedule;
  /** Gradients are scaled down together where their norm is larger; default: not. */
  readonly clipNorm?: number;
  /** Batches of a step, whose gradients are added up; default 1. */
  readonly accumulate?: number;
  /** By how much the selection biases of routers follow the load of experts in each step; default: they stay. */
  readonly biasUpdate?: number;
  /**
   * What all parameters are stored as, with f32 masters beside those in 16 bits. Default: of a checkpoint, what its weights
   * are; else f32.
   */
  readonly dtype?: TrainedDType;
  /** Same seed, same initial weights and order of sequences; default 0. */
  readonly seed?: number;
}

/** What must stay as it is over all steps of a training on text. */
export interface TrainSettings extends StepSettings {
  /** Sequences of a batch. */
  readonly batch: number;
  /** Tokens of a sequence. */
  readonly length: number;
  /** Weight of the loss that balances experts; default: `router_aux_loss_coef` of config.json, else 0.01. */
  readonly auxiliary?: number;
  /** Whether that loss balances the experts of each layer, or of all together as transformers does (default). */
  readonly balance?: Balance;
  /**
   * Compute what is inside attention and experts a second time for gradients, instead of keeping it. Gradients are the same
   * but for the order of additions. Default: keep it.
   */
  readonly recompute?: boolean;
}

/** Settings as they are saved: on text, or not. */
export type SavedSettings = StepSettings & Partial<TrainSettings>;

/** Refuse settings that mean nothing. */
export function checkSettings(
  { schedule, clipNorm, batch, length, accumulate, ...rest }: SavedSettings,
): void {
  const { auxiliary, seed, biasUpdate } = rest;
  const { rate, warmup, decay, floor } = schedule;
  const counts = { batch, length, accumulate };
  const whole = { ...counts, warmup, decay, seed };
  const numbers = { rate, floor, clipNorm, auxiliary, biasUpdate };
  for (const [name, value] of Object.entries({ ...whole, ...numbers })) {
    if (value === undefined) continue;
    const least = name in counts ? 1 : 0;
    if (value >= least && (!(name in whole) || Number.isSafeInteger(value))) {
      continue;
    }
    throw new DataError(
      `Cannot train with ${name} ${value}: expected a ${
        name in whole ? "whole number" : "number"
      } of at least ${least}`,
    );
  }
  if (accumulate !== undefined && accumulate > MAX_MICRO_BATCHES) {
    throw new DataError(
      `Cannot train with accumulate ${accumulate}: a step has at most ${MAX_MICRO_BATCHES} batches. Use fewer, larger ones`,
    );
  }
}

/** Refuse to go on with other data or other settings: the result would be neither the one nor the other. */
export function checkSame(
  folder: string,
  before: { readonly text: string; readonly settings: SavedSettings },
  now: { readonly text: string; readonly settings: SavedSettings },
): void {
  if (before.text !== now.text) {
    throw new DataError(
      `Cannot go on with '${folder}': its text was another one. Give the same data, in the same order`,
    );
  }
  const old: { readonly [name: string]: unknown } = { ...before.settings };
  const current: { readonly [name: string]: unknown } = { ...now.settings };
  for (const name of new Set([...Object.keys(old), ...Object.keys(current)])) {
    const [was, is] = [canonical(old[name]), canonical(current[name])];
    if (was === is) continue;
    throw new DataError(
      `Cannot go on with '${folder}': '${name}' was ${was}, and is ${is}. Leave it as it was, or start a new training from the checkpoint`,
    );
  }
}

/** A value as text, whatever the order of its keys. */
export function canonical(value: unknown): string {
  return JSON.stringify(
    value,
    (_, part: unknown) =>
      typeof part === "object" && part !== null && !Array.isArray(part)
        ? Object.fromEntries(
          Object.entries(part).sort(([a], [b]) => a < b ? -1 : 1),
        )
        : part,
  ) ?? "not given";
}
