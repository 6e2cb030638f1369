/** Time of a traced run per rank: computing, exchanging, waiting, or host. */

import type { Trace, TraceEvent } from "./profiler.ts";

/** Milliseconds of a rank. The four add up to the time of the programs. */
export interface RankTimes {
  readonly rank: number;
  /** Kernels and copies. */
  readonly compute: number;
  /** Rows sent to and received from other ranks. */
  readonly exchange: number;
  /** Idle time until other ranks finish: they share its device, or have not joined an exchange. */
  readonly wait: number;
  /** Host time: preparing the next steps, or detecting that work is done; more in a traced run. */
  readonly host: number;
}

/** Sums the events of a trace. */
export function rankTimes({ traceEvents }: Trace): RankTimes[] {
  const events = traceEvents.filter(({ ph }) => ph === "X");
  const rows = rowsOf(events.filter(({ tid }) => tid > 0));
  const meetings = meetingsOf(rows);
  return rows.map((row): RankTimes => {
    const { pid, tid } = row[0]!;
    const [compute, exchange, wait] = [new Sum(), new Sum(), new Sum()];
    let met = 0;
    for (const event of row) {
      const length = event.dur!;
      if (event.cat === "wait") wait.add(length);
      else if (!isCollective(event)) compute.add(length);
      else {
        // Data moves only after the last rank has joined.
        const late = (meetings[met++] ?? event.ts) - event.ts;
        const waited = Math.min(length, Math.max(0, late));
        wait.add(waited);
        exchange.add(length - waited);
      }
    }
    const starts = new Set(row.map(({ ts }) => ts));
    for (const { ts, dur } of others(events, { pid, tid })) {
      if (starts.has(ts)) continue;
      // Parts of several other ranks at one time count once.
      starts.add(ts);
      wait.add(dur!);
    }
    const total = new Sum();
    for (const event of events) {
      if (event.pid === pid && event.tid === 0) total.add(event.dur!);
    }
    const known = compute.ms + exchange.ms + wait.ms;
    return {
      rank: tid - 1,
      compute: compute.ms,
      exchange: exchange.ms,
      wait: wait.ms,
      host: Math.max(0, total.ms - known),
    };
  });
}

class Sum {
  #us = 0;
  add(us: number): void {
    this.#us += us;
  }
  get ms(): number {
    return this.#us / 1000;
  }
}

/** The events of each rank, in rank order. */
function rowsOf(events: readonly TraceEvent[]): TraceEvent[][] {
  const rows = new Map<number, TraceEvent[]>();
  for (const event of events) {
    const row = rows.get(event.tid);
    if (row) row.push(event);
    else rows.set(event.tid, [event]);
  }
  return [...rows.entries()].sort(([a], [b]) => a - b).map(([, row]) => row);
}

/** When the last rank joined each exchange. All ranks join all exchanges in the same order. */
function meetingsOf(rows: readonly (readonly TraceEvent[])[]): number[] {
  const collectives = rows.map((row) => row.filter(isCollective));
  const [first] = collectives;
  const same = collectives.every(({ length }) => length === first?.length);
  return same && first
    ? first.map((_, i) => Math.max(...collectives.map((row) => row[i]!.ts)))
    : [];
}

function isCollective({ cat }: TraceEvent): boolean {
  return cat === "allToAll" || cat === "allGather";
}

/** Activity of other ranks of a process. */
function others(
  events: readonly TraceEvent[],
  { pid, tid }: { readonly pid: number; readonly tid: number },
): TraceEvent[] {
  return events.filter((event) =>
    event.pid === pid && event.tid > 0 && event.tid !== tid
  );
}
