/** Times of the steps of a loop. */

import type { BatchStep } from "../generation/batch.ts";

/** When a step ended, and its duration, both in milliseconds. */
export interface StepTime {
  readonly at: number;
  readonly ms: number;
}

/**
 * Returns a function that times each step from when the host began to wait for it until it had the result. All steps of
 * a series have their results with the first one, so each is counted with an equal part of the time of the series.
 */
export function createStepTimer(): (
  step: BatchStep,
  waited: { readonly begun: number; readonly ended: number },
) => StepTime {
  let previous: StepTime & { readonly following: number } = {
    at: 0,
    ms: 0,
    following: 0,
  };
  return ({ following }, { begun, ended }) => {
    const continues = previous.following > 0;
    const from = continues ? previous.at : begun;
    const ms = continues ? previous.ms : (ended - begun) / (following + 1);
    previous = { at: from + ms, ms, following };
    return previous;
  };
}
