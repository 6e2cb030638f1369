/** What sessions count against what plans predict. */

import type { Test } from "tap";
import type { Session } from "../../runtime/mod.ts";

/** Memory, staging and bytes sent are those that the plan predicts, on every rank. */
export function checkPredictions(t: Test, session: Session): void {
  for (const problem of mispredictions(session)) t.fail(problem);
}

/** Each figure of a rank that is not the one that the plan predicts. */
export function mispredictions(session: Session): string[] {
  const { ranks } = session.statistics();
  if (ranks.length === 0) return ["no rank has statistics"];
  return ranks.flatMap(({ rank, peakBytes, stagingBytes, sentBytes }) =>
    Object.entries({ peakBytes, stagingBytes, ...sentBytes })
      .filter(([, { predicted, actual }]) => actual !== predicted)
      .map(([what, { predicted, actual }]) =>
        `${what} of rank ${rank}: ${actual}, predicted ${predicted}`
      )
  );
}
