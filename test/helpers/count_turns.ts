/** Measures whether a wait sleeps, by iterations of the event loop. Other load on the machine only lowers the count. */

import { performance } from "node:perf_hooks";

/** Iterations before a wait backs off to timers, with a margin for other work. */
const EAGER_TURNS = 300;

/** Event loop iterations of a wait. */
export interface Turns {
  readonly milliseconds: number;
  /** Iterations beyond EAGER_TURNS and two per millisecond, the maximum rate of timers. */
  readonly unneeded: number;
}

/** Starts to count event loop iterations of this thread. The returned function ends the count. */
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

/** Since Node 20.18; missing in its types. */
function loopCount(): number {
  const timing = performance.nodeTiming as unknown as {
    readonly uvMetricsInfo: { readonly loopCount: number };
  };
  return timing.uvMetricsInfo.loopCount;
}
