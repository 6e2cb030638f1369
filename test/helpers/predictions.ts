/** Compares statistics of sessions with predictions of plans. */

import type { Test } from "tap";
import type { Session } from "../../runtime/mod.ts";

/** Fails unless memory, staging and sent bytes of every rank match the plan's predictions. */
export function checkPredictions(t: Test, session: Session): void {
  for (const problem of mispredictions(session)) t.fail(problem);
}

/** Returns each statistic of a rank that differs from the plan's prediction. */
export function mispredictions(session: Session): string[] {
  const { ranks } = session.statistics();
  if (ranks.length === 0) return ["no rank has statistics"];
  return ranks.flatMap(({ rank, peakBytes, stagingBytes, sentBytes }) =>
    Object.entries({ peakBytes, stagingBytes, ...sentBytes })
      .filter(([, { predicted, actual }]) => actual !== predicted)
      .map(([name, { predicted, actual }]) =>
        `${name} of rank ${rank}: ${actual}, predicted ${predicted}`
      )
  );
}
