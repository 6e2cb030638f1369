/** The times in which the ranks of a recorded run wait, with reasons. */

import type { TraceEvent } from "./page_data.ts";

/** A time in which a rank waits, in microseconds from the start of the run. */
export interface Pause {
  readonly rank: number;
  readonly start: number;
  readonly duration: number;
  /**
   * `late`: for ranks with more work. `shared`: for ranks on the same device. `flight`: for an exchange that was
   * started earlier.
   */
  readonly reason: "late" | "shared" | "flight";
}

/** Display names of the reasons. */
export const PAUSE_NAMES: { readonly [R in Pause["reason"]]: string } = {
  late: "waiting for ranks that are later",
  shared: "waiting for ranks that share the device",
  flight: "waiting for an exchange in flight",
};

/** Returns the microseconds that ranks wait in each collective until the last rank starts it. */
export function lateBy(
  events: readonly TraceEvent[],
): ReadonlyMap<TraceEvent, number> {
  const rows = [...rowsOf(events.filter(isCollective)).values()];
  const [first] = rows;
  const late = new Map<TraceEvent, number>();
  // All ranks take part in all collectives, in the same order.
  if (!first || rows.some(({ length }) => length !== first.length)) return late;
  for (const i of first.keys()) {
    const last = Math.max(...rows.map((row) => row[i]!.ts));
    for (const row of rows) {
      const { ts, dur = 0 } = row[i]!;
      late.set(row[i]!, Math.min(dur, last - ts));
    }
  }
  return late;
}

/** Returns the pauses of a run that started at `start`. */
export function pausesOf(
  events: readonly TraceEvent[],
  { start, late }: {
    readonly start: number;
    readonly late: ReadonlyMap<TraceEvent, number>;
  },
): Pause[] {
  const lates = [...late].filter(([, duration]) => duration > 0)
    .map(([{ tid, ts }, duration]): Pause => ({
      rank: tid - 1,
      start: ts - start,
      duration,
      reason: "late",
    }));
  const flights = events.filter(({ cat }) => cat === "wait")
    .map(({ tid, ts, dur = 0 }): Pause => ({
      rank: tid - 1,
      start: ts - start,
      duration: dur,
      reason: "flight",
    }));
  return [...lates, ...flights, ...sharedPauses(events, start)];
}

/** Returns the times in which a rank is idle while another rank of its process works. */
function sharedPauses(events: readonly TraceEvent[], start: number): Pause[] {
  return [...rowsOf(events)].flatMap(([tid, row]) => {
    const { pid } = row[0]!;
    const others = events.filter((of) => of.pid === pid && of.tid !== tid);
    return minus(intervalsOf(others), intervalsOf(row)).map(
      ([from, to]): Pause => ({
        rank: tid - 1,
        start: from - start,
        duration: to - from,
        reason: "shared",
      }),
    );
  });
}

type Interval = readonly [from: number, to: number];

/** Returns the times of events in order, without overlaps. */
function intervalsOf(events: readonly TraceEvent[]): Interval[] {
  const merged: [number, number][] = [];
  for (const { ts, dur = 0 } of events.toSorted((a, b) => a.ts - b.ts)) {
    const last = merged.at(-1);
    if (last && ts <= last[1]) last[1] = Math.max(last[1], ts + dur);
    else merged.push([ts, ts + dur]);
  }
  return merged;
}

/** Returns the first intervals without the second ones. */
function minus(
  all: readonly Interval[],
  less: readonly Interval[],
): Interval[] {
  const left: Interval[] = [];
  let i = 0;
  for (const [from, to] of all) {
    let at = from;
    while (i < less.length && less[i]![1] <= at) i++;
    for (let k = i; k < less.length && less[k]![0] < to; k++) {
      if (less[k]![0] > at) left.push([at, less[k]![0]]);
      at = Math.max(at, less[k]![1]);
    }
    if (at < to) left.push([at, to]);
  }
  return left;
}

function rowsOf(events: readonly TraceEvent[]): Map<number, TraceEvent[]> {
  const rows = new Map<number, TraceEvent[]>();
  for (const event of events) {
    const row = rows.get(event.tid);
    if (row) row.push(event);
    else rows.set(event.tid, [event]);
  }
  return rows;
}

function isCollective({ cat }: TraceEvent): boolean {
  return cat === "allToAll" || cat === "allGather";
}
