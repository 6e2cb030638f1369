/** Where the time of a traced run went, by rank: computing, exchanging, waiting, or with the host. */

import type { Trace, TraceEvent } from "./profiler.ts";

/** Milliseconds of a rank; the four add up to the programs' time. */
export interface RankTimes {
  readonly rank: number;
  /** Its kernels and copies ran. */
  readonly compute: number;
  /** Its rows moved, to other ranks and from them. */
  readonly exchange: number;
  /** It had nothing to do before others did something: they share its device, or had not come to an exchange. */
  readonly wait: number;
  /** The host prepared what came next, or learnt that something was done; more in a traced run than in a plain one. */
  readonly host: number;
}

/** Add up the events of a trace. */
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
        // Nothing moves before the last one comes.
        const late = (meetings[met++] ?? event.ts) - event.ts;
        const waited = Math.min(length, Math.max(0, late));
        wait.add(waited);
        exchange.add(length - waited);
      }
    }
    const starts = new Set(row.map(({ ts }) => ts));
    for (const { ts, dur } of others(events, { pid, tid })) {
      if (starts.has(ts)) continue;
      // A part of several other ranks is one.
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

/** The events of each rank, in order of the ranks. */
function rowsOf(events: readonly TraceEvent[]): TraceEvent[][] {
  const rows = new Map<number, TraceEvent[]>();
  for (const event of events) {
    const row = rows.get(event.tid);
    if (row) row.push(event);
    else rows.set(event.tid, [event]);
  }
  return [...rows.entries()].sort(([a], [b]) => a - b).map(([, row]) => row);
}

/** When the last rank came to each exchange; all ranks come to all of them in one order. */
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

/** What other ranks of a process did. */
function others(
  events: readonly TraceEvent[],
  { pid, tid }: { readonly pid: number; readonly tid: number },
): TraceEvent[] {
  return events.filter((event) =>
    event.pid === pid && event.tid > 0 && event.tid !== tid
  );
}
