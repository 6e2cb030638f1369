/** Whether a wait sleeps, by how often the event loop turns: other work on the machine only makes that less. */

import { performance } from "node:perf_hooks";

/** Turns before a wait backs off to timers, with room for what else happens. */
const EAGER_TURNS = 300;

/** What is said of a wait. */
export interface Turns {
  readonly milliseconds: number;
  /** Turns beyond the eager ones and two a millisecond, which is as often as a timer may wake the loop. */
  readonly unneeded: number;
}

/** Begin to count turns of this thread's event loop; the result ends it. */
export function countTurns(): () => Turns {
  const start = performance.now();
  const before = loopCount();
  return () => {
    const milliseconds = performance.now() - start;
    const turns = loopCount() - before;
    return {
      milliseconds,
      unneeded: Math.max(0, turns - EAGER_TURNS - 2 * milliseconds),
    };
  };
}

/** From Node 20.18 on; its types lag behind. */
function loopCount(): number {
  const timing = performance.nodeTiming as unknown as {
    readonly uvMetricsInfo: { readonly loopCount: number };
  };
  return timing.uvMetricsInfo.loopCount;
}
