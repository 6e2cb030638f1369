/** What sessions count against what plans predict. */

import type { Test } from "tap";
import type { Session } from "../../runtime/mod.ts";

/** Memory, staging and bytes sent are those that the plan predicts, on every rank. */
export function checkPredictions(t: Test, session: Session): void {
  const { ranks } = session.statistics();
  if (ranks.length === 0) t.fail("no rank has statistics");
  for (const { rank, ...figures } of ranks) {
    const { peakBytes, stagingBytes, sentBytes } = figures;
    for (
      const [what, { predicted, actual }] of Object.entries({
        peakBytes,
        stagingBytes,
        ...sentBytes,
      })
    ) {
      if (actual === predicted) continue;
      t.fail(`${what} of rank ${rank}: ${actual}, predicted ${predicted}`);
    }
  }
}
