/** Compute, exchange and wait times of a traced run. */

import t from "tap";
import { type RankTimes, rankTimes, type TraceEvent } from "../runtime/mod.ts";

function event(
  row: readonly [pid: number, tid: number],
  cat: string,
  ts: number,
  dur: number,
): TraceEvent {
  const [pid, tid] = row;
  return { name: cat, cat, ph: "X", pid, tid, ts, dur, args: {} };
}

function timesOf(events: readonly TraceEvent[]): RankTimes[] {
  return rankTimes({ traceEvents: events, displayTimeUnit: "ms" });
}

t.test("ranks of one process wait while others use the device", (t) => {
  const [programs, first, second] = [[0, 0], [0, 1], [0, 2]] as const;
  const times = timesOf([
    event(first, "launch", 0, 2000),
    event(second, "launch", 2500, 3000),
    event(first, "allToAll", 6000, 1000),
    event(second, "allToAll", 6000, 1000),
    event(programs, "program", 0, 8000),
  ]);
  t.strictSame(times, [
    { rank: 0, compute: 2, exchange: 1, wait: 3, host: 2 },
    { rank: 1, compute: 3, exchange: 1, wait: 2, host: 2 },
  ]);
  t.end();
});

t.test("ranks in separate processes wait for the last one at an exchange", (t) => {
  const times = timesOf([
    event([0, 1], "launch", 0, 1000),
    event([0, 1], "allToAll", 1000, 5000),
    event([0, 1], "wait", 6000, 500),
    event([0, 0], "program", 0, 7000),
    event([1, 2], "launch", 0, 4000),
    event([1, 2], "allToAll", 4000, 2000),
    event([1, 0], "program", 0, 7000),
  ]);
  t.strictSame(times, [
    { rank: 0, compute: 1, exchange: 2, wait: 3.5, host: 0.5 },
    { rank: 1, compute: 4, exchange: 2, wait: 0, host: 1 },
  ]);
  t.end();
});
